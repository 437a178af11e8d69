"""What `--where` says, and one decision of two admins about the set of records that it lets through: for unreadable records and for held usage."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from cli.admin_client import call_command_api, console
from cli.failures import failed
from cli.tables import table
from events.facts.topics import TOPICS
from events.facts.write_offs import RECORDS_MAX, SetDecision
from events.log.record import Coordinate
from events.process.settings import Settings

_NUMBERS = {"partition", "from_offset", "to_offset"}
_INSTANTS = {"since": "since_us", "until": "until_us"}
_SET = re.compile("[0-9a-f]{64}")
APPROVED_BY: dict[SetDecision, str] = {
    "write_off": "modelmarket dead-letters approve",
    "count": "modelmarket usage approve",
    "dismiss": "modelmarket usage approve",
}


class SetRecord(NamedTuple):
    """A record as the command line shows and names it. `group`: what the summary adds up by, beside code and state."""

    at: Coordinate
    sha256: str
    group: str
    code: str
    state: str


class Asked(NamedTuple):
    """What an admin asks for; `selection` as it was typed."""

    decision: SetDecision
    topic: str
    selection: Sequence[str]
    reason: str


def terms_of(selection: Sequence[str] | None, words: Collection[str], help_: str) -> dict[str, Any]:
    """What each NAME=VALUE says, instants in µs; `words` are the names with any text as their value. Raises BadParameter for a name that is
    not known, comes twice or has no such value."""
    fields: dict[str, Any] = {}
    for term in selection or ():
        name, _, value = term.partition("=")
        field, known = _term(name, value, words, help_)
        if field in fields:
            raise typer.BadParameter(f"--where {name}=… comes twice: give it once")
        fields[field] = known
    return fields


def _term(name: str, value: str, words: Collection[str], help_: str) -> tuple[str, Any]:
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
    if name == "topic" and name in words and value not in TOPICS:
        raise typer.BadParameter(f"--where topic={value}: the topics are {', '.join(TOPICS)}")
    if name in words and value:
        return name, value
    raise typer.BadParameter(f"--where {name}={value}: write NAME=VALUE; {help_}")


def is_record_set(text: str) -> bool:
    return _SET.fullmatch(text) is not None


def request_set(settings: Settings, key_file: Path | None, asked: Asked, records: Iterable[SetRecord], heading: str) -> None:
    """Names these records, and asks for the decision about them and no others."""
    found = list(islice(records, RECORDS_MAX + 1))
    if not found:
        console.print("no open record is like that; nothing was requested")
        raise typer.Exit(1)
    if len(found) > RECORDS_MAX:
        last = found[RECORDS_MAX - 1].at
        remedy = f"make several sets: the first {RECORDS_MAX} end at {last}, so --where partition={last.partition} --where to_offset={last.offset}"
        raise failed("too many records", f"more than {RECORDS_MAX}, the most in one set", remedy, exit_code=1)
    listed = [{"partition": r.at.partition, "offset": r.at.offset, "sha256": r.sha256} for r in found]
    chosen = {"decision": asked.decision, "topic": asked.topic, "records": listed, "selection": " ".join(asked.selection)}
    answer = call_command_api(settings, key_file, "POST", "/v1/record-sets", {**chosen, "reason": asked.reason})
    console.print(summary(found, heading))
    console.print(
        f"requested by {answer['requested_by']}: {len(found)} records of {asked.topic}. Another admin:", highlight=False, markup=False
    )
    console.print(f"{APPROVED_BY[asked.decision]} {answer['record_set']} --key-file FILE", highlight=False, soft_wrap=True)


def read_set(settings: Settings, key_file: Path | None, record_set: str, decisions: Collection[SetDecision]) -> dict[str, Any]:
    """The request, when it asks for one of these decisions."""
    asked = call_command_api(settings, key_file, "GET", f"/v1/record-sets/{record_set}")
    if asked["decision"] not in decisions:
        remedy = f"`{APPROVED_BY[asked['decision']]} {record_set}`"
        raise failed("another decision", f"{asked['requested_by']} asks to {words_of(asked['decision'])} this set", remedy, exit_code=1)
    return asked


def approve_set(settings: Settings, key_file: Path | None, asked: dict[str, Any], *, yes: bool) -> None:
    """After what the records are today was shown."""
    what, total = words_of(asked["decision"]), asked["records_count"]
    console.print(f"{asked['requested_by']} requests to {what} {total} records of {asked['topic']}: {asked['reason']}", markup=False)
    console.print(f"chosen by: {asked['selection'] or 'a list'}", highlight=False, markup=False)
    if not yes:
        typer.confirm(f"{what} these {total} records?", abort=True)
    answer = call_command_api(settings, key_file, "POST", f"/v1/record-sets/{asked['record_set']}/approve")
    done = {"write_off": "written off", "count": "counted", "dismiss": "dismissed"}[asked["decision"]]
    console.print(
        f"{done}: {total} records, requested by {answer['requested_by']}, approved by {answer['approver']}", highlight=False, markup=False
    )


def words_of(decision: SetDecision) -> str:
    return decision.replace("_", " ")


def summary(records: Iterable[SetRecord], heading: str) -> Table:
    groups = defaultdict[tuple[str, str, str], list[int]](list)
    for r in records:
        groups[r.group, r.code, r.state].append(r.at.offset)
    offsets_shown = ("records", "first offset", "last offset")
    made = table(heading, "code", "state", *offsets_shown, right=offsets_shown)
    for (group, code, state), offsets in sorted(groups.items()):
        made.add_row(escape(group), escape(code), state, str(len(offsets)), str(min(offsets)), str(max(offsets)))
    return made
