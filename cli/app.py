"""`modelmarket`: everything a person does from the command line, composed from one module per subject."""

from __future__ import annotations

import sys

import typer

from cli import bill, dead_letters, keys, log, producers, replay, stack, store
from cli.failures import kept_in_a_file

app = typer.Typer(help="The AI model market on this machine.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(stack.app)
app.command("bill")(bill.bill)
app.add_typer(replay.replay, name="replay")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(producers.app, name="producers")
app.add_typer(store.app, name="store")
app.command("keys")(keys.keys)
app.add_typer(log.log, name="log")
app.add_typer(log.topics, name="topics")
app.add_typer(log.schemas, name="schemas")


def main() -> None:
    try:
        app(prog_name="modelmarket")
    except Exception as e:
        sys.exit(kept_in_a_file(e))


if __name__ == "__main__":
    main()
