"""`modelmarket usage`: usage that is held and not billed: list it, and count or dismiss it, by two admins (K13)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.markup import escape

from cli.admin_client import JsonFlag, KeyFile, YesFlag, console, instant_text
from cli.failures import explained_failures
from cli.tables import table
from cli.uncounted.record_sets import Asked, SetRecord, approve_set, is_record_set, read_set, request_set, summary, terms_of
from events.facts.write_offs import SetDecision
from events.process.settings import Settings
from projections.ingest.clickhouse import ClickHouse
from projections.usage.held import HeldCode
from projections.usage.held_records import HeldFilter, HeldRecord, all_held

app = typer.Typer(help="Usage that is held: list it, count it or dismiss it.", no_args_is_help=True)
CODES: tuple[str, ...] = get_args(HeldCode)
WHERE_HELP = (
    f"NAME=VALUE, once or more, all must hold: tenant, code ({', '.join(CODES)}), partition, from_offset, to_offset (included), "
    "since, until (UTC, when it was appended, for example 2026-11-21T10:00)."
)
Selection = Annotated[list[str] | None, typer.Option("--where", help=WHERE_HELP)]
REMEDY = "docs/operations.md, 'Usage is held'"


@app.command("held")
def held(
    tenant: Annotated[str, typer.Option("--tenant", help="Of this tenant only.")] = "",
    code: Annotated[str, typer.Option("--code", help=f"One of {', '.join(CODES)}.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Also what was counted or dismissed.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Usage that no bill charges, since nothing proves it: which records, whose, and why."""
    with explained_failures():
        found = list(all_held(ClickHouse(Settings()), HeldFilter(tenant, _known_code(code), everything=everything)))
    if as_json:
        console.print_json(json.dumps([record.to_json() for record in found]))
        return
    if not found:
        console.print("no usage is held")
        return
    listed = table("record", "tenant", "why", "state", "appended (UTC)", whole=["record"])
    for record in found:
        listed.add_row(str(record.at), escape(record.tenant), escape(record.code), record.state, instant_text(record.appended_us))
    console.print(listed)
    console.print(f"held usage is billed to nobody until two admins decide: {REMEDY}", highlight=False)


@app.command("count")
def count(
    reason: Annotated[str, typer.Option("--reason", help="How it is known that the calls were made.", prompt=True)],
    where: Selection = None,
    key_file: KeyFile = None,
) -> None:
    """Request that held usage be billed all the same, from the next bill on; another admin approves."""
    _request("count", where, reason, key_file)


@app.command("dismiss")
def dismiss(
    reason: Annotated[str, typer.Option("--reason", help="Why nobody is to pay for it.", prompt=True)],
    where: Selection = None,
    key_file: KeyFile = None,
) -> None:
    """Request that held usage stay unbilled, and alarm nobody any more; another admin approves."""
    _request("dismiss", where, reason, key_file)


@app.command("approve")
def approve(
    record_set: Annotated[str, typer.Argument(help="The name of the set, as `count` or `dismiss` printed it.")],
    yes: YesFlag = False,
    key_file: KeyFile = None,
) -> None:
    """Approve another admin's request, after a look at what the records are now."""
    if not is_record_set(record_set):
        raise typer.BadParameter(f"{record_set!r} is no name of a set: it has 64 hex digits")
    settings = Settings()
    with explained_failures():
        asked = read_set(settings, key_file, record_set, ("count", "dismiss"))
        known = _held_of(settings, {(r["partition"], r["offset"]): r["sha256"] for r in asked["records"]})
        console.print(summary(_set_records(known), "tenant"))
        if len(known) < asked["records_count"]:
            console.print(f"{asked['records_count'] - len(known)} of them are not held: the decision changes nothing about these")
        approve_set(settings, key_file, asked, yes=yes)


def _held_of(settings: Settings, named: dict[tuple[int, int], str]) -> list[HeldRecord]:
    offsets = [offset for _, offset in named]
    between = HeldFilter(from_offset=min(offsets), to_offset=max(offsets), everything=True)
    return [r for r in all_held(ClickHouse(settings), between) if named.get((r.at.partition, r.at.offset)) == r.sha256]


def _request(decision: SetDecision, where: Sequence[str] | None, reason: str, key_file: Path | None) -> None:
    if not where:
        raise typer.BadParameter("say which usage with --where, for example --where tenant=acme --where code=epoch_unknown")
    fields = terms_of(where, ("tenant", "code"), WHERE_HELP)
    _known_code(fields.get("code", ""))
    settings = Settings()
    with explained_failures():
        found = _set_records(all_held(ClickHouse(settings), HeldFilter(**fields)))
        request_set(settings, key_file, Asked(decision, "usage", where, reason), found, "tenant")


def _set_records(held: Iterable[HeldRecord]) -> Iterator[SetRecord]:
    return (SetRecord(r.at, r.sha256, r.tenant, r.code, r.state) for r in held)


def _known_code(code: str) -> str:
    if code and code not in CODES:
        raise typer.BadParameter(f"{code!r} is no code of held usage: the codes are {', '.join(CODES)}")
    return code
