"""Dead letters by filter: what `--where` says, and the set of records that two admins write off with one approval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli.admin_client import console
from cli.uncounted.record_sets import Asked, SetRecord, read_set, summary, terms_of
from cli.uncounted.record_sets import approve_set as approve_asked
from cli.uncounted.record_sets import request_set as request_asked
from events.process.settings import Settings
from projections.dead_letters.queries import STATES, DeadLetterFilter, DeadLetterStatus, all_dead_letters
from projections.ingest.clickhouse import ClickHouse

WHERE_HELP = (
    "NAME=VALUE, once or more, all must hold: topic, partition, code, tenant (the record's key), from_offset, to_offset (included), "
    "since, until (UTC, when it was first met, for example 2026-11-21T10:00)."
)
Selection = Annotated[list[str] | None, typer.Option("--where", help=WHERE_HELP)]


def filter_of(selection: Sequence[str] | None) -> DeadLetterFilter:
    """Raises BadParameter for a name that is not known, comes twice or has no such value."""
    fields = terms_of(selection, ("topic", "code", "tenant"), WHERE_HELP)
    return DeadLetterFilter(**{"key" if name == "tenant" else name: value for name, value in fields.items()})


def request_set(settings: Settings, key_file: Path | None, selection: Sequence[str], reason: str) -> None:
    """Names the records that the filter lets through now, and asks that these be written off."""
    where = filter_of(selection)
    if not where.topic:
        raise typer.BadParameter("a set is of one topic: add --where topic=usage")
    found = _set_records(all_dead_letters(ClickHouse(settings), where))
    request_asked(settings, key_file, Asked("write_off", where.topic, selection, reason), found, "partition")


def approve_set(settings: Settings, key_file: Path | None, record_set: str, *, yes: bool) -> None:
    """Shows what the records of the set are today, and approves these and no others."""
    asked = read_set(settings, key_file, record_set, ("write_off",))
    known = list(all_dead_letters(ClickHouse(settings), DeadLetterFilter(topic=asked["topic"], record_set=record_set), STATES))
    console.print(summary(_set_records(known), "partition"))
    total, readable = asked["records_count"], sum(d.state == "redriven" for d in known)
    if readable or len(known) < total:
        console.print(f"{readable} of them were read later and stay counted; {total - len(known)} are no known dead letters")
    approve_asked(settings, key_file, asked, yes=yes)


def _set_records(dead_letters: Iterable[DeadLetterStatus]) -> Iterator[SetRecord]:
    return (SetRecord(d.at, d.sha256, str(d.at.partition), d.code, d.state) for d in dead_letters)
