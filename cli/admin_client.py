"""What the commands for operators share: calls of the command API as an admin, coordinates, instants."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from cli.failures import failed, not_available
from events.facts.topics import TOPICS
from events.log.record import Coordinate
from events.process.admin_key import admin_key
from events.process.settings import Settings

console = Console()
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", help="File with the admin's API key. Default: MODELMARKET_ADMIN_KEY, then this stack's first admin."),
]
YesFlag = Annotated[bool, typer.Option("--yes", help="Do not ask again.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")]


def coordinate(text: str) -> Coordinate:
    """`usage/2/1041`."""
    parts = text.split("/")
    if len(parts) != 3 or parts[0] not in TOPICS or not all(p.isascii() and p.isdigit() and len(p) < 19 for p in parts[1:]):
        raise typer.BadParameter(f"{text!r} is no coordinate: write TOPIC/PARTITION/OFFSET, for example usage/2/1041")
    return Coordinate(parts[0], int(parts[1]), int(parts[2]))


def call_command_api(
    settings: Settings, key_file: Path | None, method: str, path: str, body: dict[str, Any] | None = None, *, if_match: int | None = None
) -> dict[str, Any]:
    """The answer of the command API. A refusal is printed with its code and remedy, and ends the program with exit code 1. `if_match`: the
    only version of the aggregate that the command may be decided on."""
    try:
        key = key_file.read_text().strip() if key_file else admin_key(settings)
    except OSError as e:
        raise typer.BadParameter(f"no admin key: {e}; name a file with --key-file") from e
    try:
        headers = {"Authorization": f"Bearer {key}", **({"If-Match": f'"{if_match}"'} if if_match is not None else {})}
        answer = httpx.request(method, settings.commands + path, json=body, headers=headers, timeout=30)
    except httpx.TransportError as e:
        raise not_available(e) from e
    if answer.is_success:
        return answer.json()
    try:
        problem = answer.json()
        code, detail, remedy = problem["code"], problem["detail"], problem["remedy"]
    except (ValueError, KeyError):  # a proxy between, or another server on this port
        code, detail, remedy = str(answer.status_code), answer.text[:300], ""
    raise failed(f"refused ({code})", detail, remedy or "see docs/operations.md", exit_code=1)


def instant_text(micros: int) -> str:
    """An instant as text, UTC; `never` for 0."""
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S") if micros else "never"
