"""`modelmarket store`: the event store of decisions, made again from the log."""

from __future__ import annotations

import typer
from rich.console import Console

from cli.failures import failed
from commands.store.rebuild import NotRebuilt, rebuild_store
from events.process.settings import Settings

app = typer.Typer(help="The event store of decisions.", no_args_is_help=True)
console = Console()


@app.callback()
def store() -> None:
    """The event store of decisions."""


@app.command()
def rebuild() -> None:
    """Fill an empty store from the log, after the store was lost. End the command API and the relay first, and move the old store away."""
    try:
        count = rebuild_store(Settings())
    except NotRebuilt as e:
        raise failed("the store was not rebuilt", str(e), "docs/operations.md, 'The relay ends with 2'", exit_code=1) from e
    console.print(f"rebuilt {count} facts; now `modelmarket up`")
