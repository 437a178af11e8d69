"""A failure as a sentence and what to do, with its exit code: the same for every command."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from events.log.client import LogMismatch, LogUnavailable
from events.schema.registry import IncompatibleSchema, RegistryUnavailable
from projections.ingest.clickhouse import ClickHouseUnavailable

console = Console()


@contextmanager
def explained_failures() -> Generator[None]:
    """Exit code 2: a part is not available, or it is not the part that belongs to this log."""
    try:
        yield
    except (LogUnavailable, RegistryUnavailable, ClickHouseUnavailable) as e:
        raise not_available(e) from e
    except (LogMismatch, IncompatibleSchema) as e:
        raise failed("refused", str(e), "docs/operations.md, 'Log and registry do not belong together'", exit_code=2) from e


def not_available(e: Exception) -> typer.Exit:
    """Prints that a part does not answer. Returns what ends the command: raise it."""
    remedy = "start the stack with `modelmarket up`, or set its MODELMARKET_* variables"
    return failed("not available", f"{type(e).__name__}: {e}", remedy, exit_code=2)


def failed(what: str, why: str, remedy: str, *, exit_code: int) -> typer.Exit:
    """Prints two lines, what is wrong and what to do. Returns what ends the command: raise it."""
    console.print(f"[red]{what}:[/] {escape(why)}", highlight=False, soft_wrap=True)
    console.print(f"what to do: {remedy}", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(exit_code)
