"""`modelmarket dead-letters`: records that could not be read: list them, read them again, write them off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cli.admin_client import JsonFlag, KeyFile, YesFlag, call_command_api, console, coordinate, instant_text
from cli.failures import explained_failures, failed
from cli.tables import table
from cli.uncounted.dead_letter_sets import Selection, approve_set, filter_of, request_set
from cli.uncounted.record_sets import is_record_set
from events.log.client import LogMismatch, Reader
from events.log.record import Coordinate, Record
from events.log.schemas import read_schemas
from events.process.settings import Settings
from events.schema.codec import Codec, Undecodable
from projections.dead_letters.queries import OPEN, STATES, TRIED, DeadLetterFilter, DeadLetterStatus, all_dead_letters, find_dead_letters
from projections.dead_letters.redrive import Redrive, Tried
from projections.ingest.clickhouse import ClickHouse
from projections.usage.validator import why_unreadable

app = typer.Typer(help="Records that could not be read: retry or write off.", no_args_is_help=True)
SHOWN_BYTES = 256
TENANTS_NAMED_MAX = 10
CoordinateArgument = Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET, for example usage/2/1041.")]


@app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those written off or read later.")] = False,
    as_json: JsonFlag = False,
    where: Selection = None,
) -> None:
    """Open dead letters: where, why, since when, and whether a write-off is requested."""
    chosen = filter_of(where)
    with explained_failures():
        found = list(all_dead_letters(ClickHouse(Settings()), chosen, STATES if everything else OPEN))
    if as_json:
        console.print_json(json.dumps([letter.to_json() for letter in found]))
        return
    if not found:
        console.print("no dead letter is open")
        return
    listed = table("record", "why", "since (UTC)", "state", whole=["record"])
    for letter in found:
        listed.add_row(
            str(letter.at), escape(f"{letter.code}: {letter.reason}"[:120]), instant_text(letter.first_us), escape(_state(letter))
        )
    console.print(listed)
    waiting = sorted({letter.key for letter in found if letter.at.topic == "usage" and letter.state in OPEN})
    if waiting:
        named = f"{', '.join(waiting[:TENANTS_NAMED_MAX])}{' and others' * (len(waiting) > TENANTS_NAMED_MAX)}"
        console.print(f"bills wait of the tenants that the keys of these records name: {named};", highlight=False, markup=False)
        console.print("and of every tenant whose chain of usage misses a record")


@app.command("show")
def show(where: CoordinateArgument) -> None:
    """One record: its state, its bytes, and whether today's schemas can read it."""
    at, settings = coordinate(where), Settings()
    with explained_failures():
        known = find_dead_letters(ClickHouse(settings), STATES, str(at))
        record, why = _read_record(settings, at)
    for letter in known:
        line = escape(f"{_state(letter)}, since {instant_text(letter.first_us)}: {letter.code}: {letter.reason}")
        console.print(f"[bold]{at}[/] {line}", highlight=False)
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
    record: Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET; not with --all or --where.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every open dead letter of usage, and those written off that can be read by now.")
    ] = False,
    where: Selection = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again about one that is written off.")] = False,
) -> None:
    """Read records again with today's schemas; what can be read now gets its row in the table. Exit code 1 when one cannot."""
    if bool(record) == bool(everything or where):
        raise typer.BadParameter("name one record, or give --all or --where")
    chosen = filter_of(where)
    if chosen.topic not in ("", "usage"):
        raise typer.BadParameter("only records of usage can be read again")
    settings = Settings()
    with explained_failures():
        clickhouse = ClickHouse(settings)
        if record and not yes and find_dead_letters(clickhouse, ("written_off",), record):
            console.print(f"{record} is written off. Bills issued over it left it out and stay as they are. If it can be read now,")
            typer.confirm("the next bill of its tenant counts it. Read it again?", abort=True)
        redrive = Redrive(settings, clickhouse)
        try:
            tried = [_print_result(redrive.retry(coordinate(record)))] if record else list(_retry_all(clickhouse, redrive, chosen))
        finally:
            redrive.close()
    if not tried:
        console.print("no such dead letter of usage is open, and none that was written off can be read")
    raise typer.Exit(0 if all(t.kind in ("redriven", "readable") for t in tried) else 1)


@app.command("write-off")
def write_off(
    reason: Annotated[str, typer.Option("--reason", help="Why it will never be readable.", prompt=True)],
    record: Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET; not with --where.")] = "",
    where: Selection = None,
    key_file: KeyFile = None,
) -> None:
    """Request to write off a record, or with --where the set of those that are like that now; another admin approves. A record that can be
    read is counted whatever is written off: `retry` first."""
    if bool(record) == bool(where):
        raise typer.BadParameter("name one record, or give --where")
    with explained_failures():
        if where:
            request_set(Settings(), key_file, where, reason)
        else:
            _request_one(Settings(), key_file, coordinate(record), reason)


def _request_one(settings: Settings, key_file: Path | None, at: Coordinate, reason: str) -> None:
    record, why = _read_record(settings, at)
    if not why:
        console.print(f"{at} can be read and is counted, whatever is written off: `modelmarket dead-letters retry {at}`")
        raise typer.Exit(1)
    if why.startswith("unknown_schema"):
        console.print("[yellow]its schema is not on the log: if the program that wrote it is known, publish its schemas and retry first[/]")
    answer = call_command_api(settings, key_file, "POST", f"/v1/write-offs/records/{at}", {"sha256": _hash(record), "reason": reason})
    console.print(f"requested by {answer['requested_by']}: {at}, sha256 {answer['sha256']}", highlight=False)
    console.print(f"another admin: modelmarket dead-letters approve {at} --key-file FILE", highlight=False)


@app.command("approve")
def approve(
    where: Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET, or the name of a set as `write-off` printed it.")],
    yes: YesFlag = False,
    key_file: KeyFile = None,
) -> None:
    """Approve another admin's request, after a look at what is on the log. Bills then no longer wait for the record, or for the set's."""
    settings = Settings()
    if is_record_set(where):
        with explained_failures():
            approve_set(settings, key_file, where, yes=yes)
        return
    at = coordinate(where)
    with explained_failures():
        request = call_command_api(settings, key_file, "GET", f"/v1/write-offs/records/{at}")
        record, why = _read_record(settings, at)
        console.print(f"{at}: {request['requested_by']} requests to write it off: {request['reason']}", highlight=False, markup=False)
        console.print(f"today: {why}" if why else "today: it can be read, so it stays counted", highlight=False, markup=False)
        if not yes:
            typer.confirm("write it off?", abort=True)
        answer = call_command_api(settings, key_file, "POST", f"/v1/write-offs/records/{at}/approve", {"sha256": _hash(record)})
    console.print(f"written off: {at}, requested by {answer['requested_by']}, approved by {answer['approver']}", highlight=False)


def _read_record(settings: Settings, at: Coordinate) -> tuple[Record, str]:
    """The record, and why it cannot be read; empty when it can."""
    reader = Reader(settings, "dead-letters")
    try:
        schemas, _ = read_schemas(reader)
        try:
            record = reader.record_at(at.topic, at.partition, at.offset)
        except LogMismatch as e:
            raise failed("no such record", str(e), "take the coordinate from `modelmarket dead-letters list`", exit_code=1) from e
    finally:
        reader.close()
    if at.topic == "usage":
        return record, str(why_unreadable(schemas, record.value) or "")
    try:
        name, _ = Codec(schemas).decode(record.value)
    except Undecodable as e:
        return record, str(e)
    return record, f"it reads as {name}, and does not belong there" if find_dead_letters(ClickHouse(settings), STATES, str(at)) else ""


def _retry_all(clickhouse: ClickHouse, redrive: Redrive, where: DeadLetterFilter) -> Iterator[Tried]:
    """A record that is written off and still cannot be read is not printed."""
    for letter in all_dead_letters(clickhouse, replace(where, topic="usage"), TRIED):
        tried = redrive.retry(letter.at)
        if letter.state != "written_off" or tried.kind != "unreadable":
            yield _print_result(tried)


def _hash(record: Record) -> str:
    return hashlib.sha256(record.value or b"").hexdigest()


def _print_result(tried: Tried) -> Tried:
    style = "green" if tried.kind in ("redriven", "readable") else "red"
    console.print(f"{tried.at} [{style}]{tried.kind}[/]: ", end="", highlight=False)
    console.print(tried.message, highlight=False, markup=False)
    return tried


def _state(letter: DeadLetterStatus) -> str:
    match letter.state:
        case "open":
            return "open; a write-off names other bytes and is ignored" if letter.mistaken else "open"
        case "requested":
            return f"write-off requested by {letter.requested_by}{', set ' + letter.record_set if letter.record_set else ''}"
        case "written_off":
            return f"written off by {letter.requested_by} and {letter.approver}"
        case "redriven":
            return "read later"
