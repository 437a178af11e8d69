"""What the commands for operators share: calls of the command API as an admin, coordinates, instants, failures as sentences."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from events.facts.topics import TOPICS
from events.log.client import LogMismatch, LogUnavailable
from events.log.record import Coordinate
from events.process.admin_key import admin_key
from events.process.settings import Settings
from projections.ingest.clickhouse import ClickHouseUnavailable

console = Console()
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", help="File with the admin's API key. Default: MODELMARKET_ADMIN_KEY, then this stack's first admin."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask again.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")]


@contextmanager
def explained_failures() -> Generator[None]:
    """Turns a failure of a part into a sentence and what to do. Exit code 2: not available; 1: the log does not have it."""
    try:
        yield
    except (LogUnavailable, ClickHouseUnavailable, httpx.TransportError) as e:
        console.print(f"[red]not available:[/] {type(e).__name__}: {escape(str(e))}")
        console.print("what to do: start the stack with `modelmarket up`, or set its MODELMARKET_* variables")
        raise typer.Exit(2) from e
    except LogMismatch as e:
        console.print(f"[red]the log does not have it:[/] {escape(str(e))}")
        raise typer.Exit(1) from e


def coordinate(text: str) -> Coordinate:
    """`usage/2/1041`."""
    parts = text.split("/")
    if len(parts) != 3 or parts[0] not in TOPICS or not all(p.isascii() and p.isdigit() and len(p) < 19 for p in parts[1:]):
        raise typer.BadParameter(f"{text!r} is no coordinate: write TOPIC/PARTITION/OFFSET, for example usage/2/1041")
    return Coordinate(parts[0], int(parts[1]), int(parts[2]))


def call_command_api(
    settings: Settings, key_file: Path | None, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The answer of the command API. A refusal is printed with its code and remedy, and ends the program with exit code 1."""
    try:
        key = key_file.read_text().strip() if key_file else admin_key(settings)
    except OSError as e:
        raise typer.BadParameter(f"no admin key: {e}; name a file with --key-file") from e
    answer = httpx.request(method, settings.commands + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)
    if answer.is_success:
        return answer.json()
    try:
        problem = answer.json()
        console.print(f"[red]refused ({problem['code']}):[/] {escape(problem['detail'])}", highlight=False)
        console.print(f"what to do: {problem['remedy'] or 'see docs/operations.md'}", highlight=False, markup=False)
    except (ValueError, KeyError):
        console.print(f"[red]refused:[/] {answer.status_code} {escape(answer.text[:300])}")
    raise typer.Exit(1)


def when(micros: int) -> str:
    """An instant as text, UTC; `never` for 0."""
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S") if micros else "never"
