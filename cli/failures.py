"""A failure as a sentence and what to do, with its exit code: the same for every command."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from events.log.client import LogBroken, LogMismatch, LogUnavailable
from events.log.sign_in import LogDenied
from events.schema.codec import Undecodable
from events.schema.registry import IncompatibleSchema, RegistryUnavailable
from projections.ingest.clickhouse import ClickHouseError, ClickHouseUnavailable
from rating.statement import UnknownRatingVersion

console = Console()


@contextmanager
def explained_failures() -> Generator[None]:
    """Exit code 2: a part is not available, or it is not the part that belongs to this log."""
    try:
        yield
    except (LogUnavailable, RegistryUnavailable, ClickHouseUnavailable) as e:
        raise not_available(e) from e
    except LogDenied as e:
        raise failed("denied", str(e), "docs/operations.md, 'Kafka does not let a part in'", exit_code=2) from e
    except (LogMismatch, IncompatibleSchema) as e:
        raise failed("refused", str(e), "docs/operations.md, 'Log and registry do not belong together'", exit_code=2) from e
    except ClickHouseError as e:
        remedy = "`modelmarket logs clickhouse`, and `modelmarket logs prepare`: it makes the tables"
        raise failed("ClickHouse refused", f"code {e.code}: {e}", remedy, exit_code=2) from e
    except LogBroken as e:
        raise failed(
            "not written", str(e), "look at what is there with `modelmarket log tail`, and run the command again", exit_code=2
        ) from e
    except Undecodable as e:
        raise failed("unreadable", str(e), "`modelmarket schemas check`, and `modelmarket dead-letters list`", exit_code=2) from e
    except UnknownRatingVersion as e:
        raise failed("refused", str(e), "use the release of this program that cut the bill, or a newer one", exit_code=2) from e


def kept_in_a_file(failure: Exception) -> int:
    """Keeps the traceback of an unexpected failure in a file and prints its path. Returns the exit code."""
    descriptor, name = tempfile.mkstemp(prefix="modelmarket-failure-", suffix=".txt")
    with os.fdopen(descriptor, "w") as file:
        traceback.print_exception(failure, file=file)
    failed("unexpected", f"{type(failure).__name__}: {failure}", f"report it with the file {name}", exit_code=3)
    return 3


def not_available(e: Exception) -> typer.Exit:
    """Prints that a part does not answer. Returns what ends the command: raise it."""
    remedy = "start the stack with `modelmarket up`, or set its MODELMARKET_* variables"
    return failed("not available", f"{type(e).__name__}: {e}", remedy, exit_code=2)


def failed(what: str, why: str, remedy: str, *, exit_code: int) -> typer.Exit:
    """Prints two lines, what is wrong and what to do. Returns what ends the command: raise it."""
    console.print(f"[red]{what}:[/] {escape(why)}", highlight=False, soft_wrap=True)
    console.print(f"what to do: {remedy}", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(exit_code)
