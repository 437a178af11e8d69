"""`modelmarket`: everything a person does from the command line, composed from one module per subject.

A subject is imported when one of its commands is asked for: `status` must not wait for the clients that `bill` needs.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

COMMANDS = {
    **{name: f"stack:{name}" for name in ("up", "down", "restart", "status", "logs")},
    "bill": "bill:bill",
    "keys": "keys:keys",
    "replay": "replay:replay",
    "dead-letters": "uncounted.dead_letters:app",
    "producers": "producers:app",
    "quotas": "quotas:app",
    "usage": "uncounted.usage:app",
    "store": "replay:store",
    "log": "log:log",
    "topics": "log:topics",
    "schemas": "log:schemas",
}
"""Command → module below this room, and the function or group in it."""


class Subjects(TyperGroup):
    """The commands of the table, each imported when it is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            module, _, member = COMMANDS[cmd_name].partition(":")
            found: Any = getattr(importlib.import_module(f"cli.{module}"), member)
            holder = typer.Typer(add_completion=False)
            if isinstance(found, typer.Typer):
                holder.add_typer(found, name=cmd_name)
            else:
                holder.command(cmd_name)(found)
            self.commands[cmd_name] = get_group(holder).commands[cmd_name]
        return self.commands.get(cmd_name)


app = typer.Typer(cls=Subjects, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def modelmarket() -> None:
    """The AI model market on this machine."""


def main() -> None:
    try:
        app(prog_name="modelmarket")
    except Exception as e:
        from cli.failures import kept_in_a_file  # here: it knows the failures of every client, and imports them

        sys.exit(kept_in_a_file(e))


if __name__ == "__main__":
    main()
