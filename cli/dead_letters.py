"""`modelmarket dead-letters`: records nobody could read, tried again or given up, so that bills can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cli.admin_client import AsJson, KeyFile, Yes, ask, console, coordinate, in_words, when
from events.log.client import Reader
from events.log.record import Coordinate, Record
from events.log.schemas import read_schemas
from events.process.settings import Settings
from events.schema.codec import Codec, Undecodable
from projections.dead_letters.queries import DEAD_LETTERS_MAX, OPEN, STATES, TRIED, DeadLetterStatus, all_dead_letters, find_dead_letters
from projections.dead_letters.redrive import Redrive, Tried
from projections.ingest.clickhouse import ClickHouse
from projections.usage.validator import why_unreadable

app = typer.Typer(help="Records nobody could read: try again, or give up.", no_args_is_help=True)
SHOWN_BYTES = 256
Where = Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET, for example usage/2/1041.")]


@app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those written off or read in the end.")] = False, as_json: AsJson = False
) -> None:
    """Open dead letters: where, why, since when, and whether somebody asked to write them off."""
    with in_words():
        found = find_dead_letters(ClickHouse(Settings()), STATES if everything else OPEN)
    if as_json:
        console.print_json(json.dumps([letter.to_json() for letter in found]))
        return
    if not found:
        console.print("no dead letter is open")
        return
    table = Table("record", "why", "since (UTC)", "state")
    for letter in found:
        table.add_row(str(letter.at), escape(f"{letter.code}: {letter.reason}"[:120]), when(letter.first_us), escape(_state(letter)))
    console.print(table)
    if len(found) == DEAD_LETTERS_MAX:
        console.print(f"the first {DEAD_LETTERS_MAX}; there are more")
    if any(letter.at.topic == "usage" and letter.state in OPEN for letter in found):
        console.print("bills of the partitions of usage named here wait")


@app.command("show")
def show(where: Where) -> None:
    """One record: what is known of it, its bytes, and what today's schemas say to it."""
    at, settings = coordinate(where), Settings()
    with in_words():
        known = find_dead_letters(ClickHouse(settings), STATES, str(at))
        record, why = _look(settings, at)
    for letter in known:
        said = escape(f"{_state(letter)}, since {when(letter.first_us)}: {letter.code}: {letter.reason}")
        console.print(f"[bold]{at}[/] {said}", highlight=False)
    if not known:
        console.print(f"[bold]{at}[/]: no dead letter is known of this record")
    value = record.value or b""
    console.print(f"sha256 {hashlib.sha256(value).hexdigest()}, {len(value)} bytes, key {record.key!r}", highlight=False, markup=False)
    console.print(f"headers {record.headers!r}", highlight=False, markup=False)
    for start in range(0, min(len(value), SHOWN_BYTES), 16):
        piece = value[start : start + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in piece)
        console.print(f"{start:6d}  {piece.hex(' '):48}  {text}", highlight=False, markup=False)
    console.print(f"today: {why}" if why else "today: it can be read", highlight=False, markup=False)


@app.command("retry")
def retry(
    where: Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET; not with --all.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every open dead letter of usage, and those written off that can be read by now.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again about one that is written off.")] = False,
) -> None:
    """Reads records again with today's schemas; what can be read now takes its place in the table. Exit code 1 when one cannot."""
    if bool(where) == everything:
        raise typer.BadParameter("name one record, or give --all")
    settings = Settings()
    with in_words():
        clickhouse = ClickHouse(settings)
        if where and not yes and find_dead_letters(clickhouse, ("written_off",), where):
            console.print(f"{where} is written off. Bills issued over it left it out and stay as they are. If it can be read now,")
            typer.confirm("the next bill of its tenant counts it. Read it again?", abort=True)
        redrive = Redrive(settings, clickhouse)
        try:
            tried = [_tell(redrive.retry(coordinate(where)))] if where else list(_every(clickhouse, redrive))
        finally:
            redrive.close()
    if not tried:
        console.print("no dead letter of usage is open, and none that was written off can be read")
    raise typer.Exit(0 if all(t.kind in ("redriven", "readable") for t in tried) else 1)


@app.command("write-off")
def write_off(
    where: Where,
    reason: Annotated[str, typer.Option("--reason", help="Why nobody will ever read it.", prompt=True)],
    key_file: KeyFile = None,
) -> None:
    """Asks that a record be given up; another admin approves. A record that can be read is refused here: it is counted, not given up."""
    at, settings = coordinate(where), Settings()
    with in_words():
        record, why = _look(settings, at)
        if not why:
            console.print(f"{at} can be read and is counted, whatever is written off: `modelmarket dead-letters retry {at}`")
            raise typer.Exit(1)
        if why.startswith("unknown_schema"):
            console.print(
                "[yellow]its schema is not on the log: if the program that wrote it is known, publish its schemas and retry first[/]"
            )
        said = ask(settings, key_file, "POST", f"/v1/write-offs/records/{at}", {"sha256": _hash(record), "reason": reason})
    console.print(f"requested by {said['requested_by']}: {at}, sha256 {said['sha256']}", highlight=False)
    console.print(f"another admin: modelmarket dead-letters approve {at} --key-file FILE", highlight=False)


@app.command("approve")
def approve(where: Where, yes: Yes = False, key_file: KeyFile = None) -> None:
    """Approves what another admin asked for, after a look at the bytes on the log. From then on bills are cut over the record."""
    at, settings = coordinate(where), Settings()
    with in_words():
        asked = ask(settings, key_file, "GET", f"/v1/write-offs/records/{at}")
        record, why = _look(settings, at)
        console.print(f"{at}: {asked['requested_by']} asks to give it up: {asked['reason']}", highlight=False, markup=False)
        console.print(f"today: {why}" if why else "today: it can be read, so it stays counted", highlight=False, markup=False)
        if not yes:
            typer.confirm("give it up?", abort=True)
        said = ask(settings, key_file, "POST", f"/v1/write-offs/records/{at}/approve", {"sha256": _hash(record)})
    console.print(f"written off: {at}, requested by {said['requested_by']}, approved by {said['approver']}", highlight=False)


def _look(settings: Settings, at: Coordinate) -> tuple[Record, str]:
    """The record, and why it cannot be read; empty when it can."""
    reader = Reader(settings, "dead-letters")
    try:
        schemas, _ = read_schemas(reader)
        record = reader.record_at(at.topic, at.partition, at.offset)
    finally:
        reader.close()
    if at.topic == "usage":
        return record, str(why_unreadable(schemas, record.value) or "")
    try:
        name, _ = Codec(schemas).decode(record.value)
    except Undecodable as e:
        return record, str(e)
    return record, f"it reads as {name}, and has no place there" if find_dead_letters(ClickHouse(settings), STATES, str(at)) else ""


def _every(clickhouse: ClickHouse, redrive: Redrive) -> Iterator[Tried]:
    """What was given up and cannot be read is as it should be: nothing is said of it."""
    for letter in all_dead_letters(clickhouse, "usage", TRIED):
        tried = redrive.retry(letter.at)
        if letter.state != "written_off" or tried.kind != "unreadable":
            yield _tell(tried)


def _hash(record: Record) -> str:
    return hashlib.sha256(record.value or b"").hexdigest()


def _tell(tried: Tried) -> Tried:
    style = "green" if tried.kind in ("redriven", "readable") else "red"
    console.print(f"{tried.at} [{style}]{tried.kind}[/]: ", end="", highlight=False)
    console.print(tried.message, highlight=False, markup=False)
    return tried


def _state(letter: DeadLetterStatus) -> str:
    match letter.state:
        case "open":
            return "open; a write-off names other bytes and is ignored" if letter.mistaken else "open"
        case "requested":
            return f"write-off requested by {letter.requested_by}"
        case "written_off":
            return f"written off by {letter.requested_by} and {letter.approver}"
        case "redriven":
            return "read in the end"
