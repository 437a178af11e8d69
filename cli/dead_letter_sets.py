"""Dead letters by filter: what `--where` says, and the set of records that two admins write off with one approval."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cli.admin_client import call_command_api, console
from cli.failures import failed
from events.facts.topics import TOPICS
from events.facts.write_offs import RECORDS_MAX
from events.process.settings import Settings
from projections.dead_letters.queries import STATES, DeadLetterFilter, DeadLetterStatus, all_dead_letters
from projections.ingest.clickhouse import ClickHouse

WHERE_HELP = (
    "NAME=VALUE, once or more, all must hold: topic, partition, code, tenant (the record's key), from_offset, to_offset (included), "
    "since, until (UTC, when it was first met, for example 2026-11-21T10:00)."
)
Selection = Annotated[list[str] | None, typer.Option("--where", help=WHERE_HELP)]
_NUMBERS = {"partition", "from_offset", "to_offset"}
_INSTANTS = {"since": "since_us", "until": "until_us"}
_SET = re.compile("[0-9a-f]{64}")


def filter_of(selection: Sequence[str] | None) -> DeadLetterFilter:
    """Raises BadParameter for a name that is not known, comes twice or has no such value."""
    fields: dict[str, Any] = {}
    for term in selection or ():
        name, _, value = term.partition("=")
        field, known = _term(name, value)
        if field in fields:
            raise typer.BadParameter(f"--where {name}=… comes twice: give it once")
        fields[field] = known
    return DeadLetterFilter(**fields)


def _term(name: str, value: str) -> tuple[str, Any]:
    if name in _NUMBERS:
        if not (value.isascii() and value.isdigit() and len(value) < 19) or (name == "partition" and len(value) > 9):
            raise typer.BadParameter(f"--where {name}={value}: write a number, 0 or more")
        return name, int(value)
    if name in _INSTANTS:
        try:
            at = datetime.fromisoformat(value)
        except ValueError as e:
            raise typer.BadParameter(f"--where {name}={value}: write an instant in UTC, for example 2026-11-21T10:00") from e
        return _INSTANTS[name], int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)
    if name == "topic" and value not in TOPICS:
        raise typer.BadParameter(f"--where topic={value}: the topics are {', '.join(TOPICS)}")
    if name in ("topic", "code", "tenant") and value:
        return "key" if name == "tenant" else name, value
    raise typer.BadParameter(f"--where {name}={value}: write NAME=VALUE; {WHERE_HELP}")


def is_record_set(text: str) -> bool:
    return _SET.fullmatch(text) is not None


def request_set(settings: Settings, key_file: Path | None, selection: Sequence[str], reason: str) -> None:
    """Names the records that the filter lets through now, and asks that these be written off."""
    where = filter_of(selection)
    if not where.topic:
        raise typer.BadParameter("a set is of one topic: add --where topic=usage")
    found = list(islice(all_dead_letters(ClickHouse(settings), where), RECORDS_MAX + 1))
    if not found:
        console.print("no open dead letter is like that; nothing was requested")
        raise typer.Exit(1)
    if len(found) > RECORDS_MAX:
        last = found[RECORDS_MAX - 1].at
        remedy = f"make several sets: the first {RECORDS_MAX} end at {last}, so --where partition={last.partition} --where to_offset={last.offset}"
        raise failed("too many records", f"more than {RECORDS_MAX}, the most in one set", remedy, exit_code=1)
    records = [{"partition": d.at.partition, "offset": d.at.offset, "sha256": d.sha256} for d in found]
    body = {"topic": where.topic, "records": records, "selection": " ".join(selection), "reason": reason}
    answer = call_command_api(settings, key_file, "POST", "/v1/write-offs/record-sets", body)
    console.print(_summary(found))
    console.print(
        f"requested by {answer['requested_by']}: {len(found)} records of {where.topic}. Another admin:", highlight=False, markup=False
    )
    console.print(f"modelmarket dead-letters approve {answer['record_set']} --key-file FILE", highlight=False, soft_wrap=True)


def approve_set(settings: Settings, key_file: Path | None, record_set: str, *, yes: bool) -> None:
    """Shows what the records of the set are today, and approves these and no others."""
    path = f"/v1/write-offs/record-sets/{record_set}"
    asked = call_command_api(settings, key_file, "GET", path)
    known = list(all_dead_letters(ClickHouse(settings), DeadLetterFilter(topic=asked["topic"], record_set=record_set), STATES))
    console.print(_summary(known))
    total, readable = asked["records_count"], sum(d.state == "redriven" for d in known)
    console.print(f"{asked['requested_by']} requests to write off {total} records of {asked['topic']}: {asked['reason']}", markup=False)
    console.print(f"chosen by: {asked['selection'] or 'a list'}", highlight=False, markup=False)
    if readable or len(known) < total:
        console.print(f"{readable} of them were read later and stay counted; {total - len(known)} are no known dead letters")
    if not yes:
        typer.confirm(f"write off these {total} records?", abort=True)
    answer = call_command_api(settings, key_file, "POST", f"{path}/approve")
    console.print(
        f"written off: {total} records, requested by {answer['requested_by']}, approved by {answer['approver']}",
        highlight=False,
        markup=False,
    )


def _summary(dead_letters: Sequence[DeadLetterStatus]) -> Table:
    groups = defaultdict[tuple[int, str, str], list[int]](list)
    for d in dead_letters:
        groups[d.at.partition, d.code, d.state].append(d.at.offset)
    table = Table("partition", "code", "state", "records", "first offset", "last offset")
    for (partition, code, state), offsets in sorted(groups.items()):
        table.add_row(str(partition), escape(code), state, str(len(offsets)), str(min(offsets)), str(max(offsets)))
    return table
