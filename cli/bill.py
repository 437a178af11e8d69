"""`modelmarket bill`: what a tenant owes for a period, and whether that can be recomputed from the log."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.failures import explained_failures, failed
from cli.tables import table
from events.log.client import Reader
from events.log.schemas import read_schemas
from events.process.settings import Settings
from events.schema.codec import Codec
from projections.bills.decided_for_bills import LogIncomplete
from projections.bills.verify import ComparedBill, running_bill, verify
from projections.ingest.clickhouse import ClickHouse, ClickHouseUnavailable
from projections.query_api.bills import whole_bill_of
from rating.period import InvalidPeriod, period_bounds

console = Console()
errors = Console(stderr=True)
UNIT = 1_000_000


def bill(
    tenant: Annotated[str, typer.Argument(help="The tenant who pays.")],
    period: Annotated[str, typer.Argument(help="YYYY-MM or YYYY-MM-DD, in the tenant's zone.")],
    check: Annotated[bool, typer.Option("--verify", help="Recompute from Kafka alone and compare; exit code 1 on any difference.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Show the bills of a period, issued and running; with --verify, recompute each from the log."""
    settings = Settings()
    try:
        period_bounds(period, "UTC")
    except InvalidPeriod as e:
        raise typer.BadParameter(str(e)) from e
    try:
        with explained_failures():
            done = _verify(settings, tenant, period, as_json) if check else _show(settings, tenant, period, as_json)
    except LogIncomplete as e:
        raise failed("the log is incomplete", str(e), "docs/operations.md, 'A bill does not come'", exit_code=1) from e
    raise typer.Exit(0 if done else 1)


def _show(settings: Settings, tenant: str, period: str, as_json: bool) -> bool:
    found = whole_bill_of(ClickHouse(settings), tenant, period)
    if as_json:
        console.print_json(json.dumps(found))
        return bool(found["bills"])
    for one in found["bills"]:
        console.print(f"[bold]{tenant}, bill {one['number']} of {period}[/] ({one['status']})")
        for model, lines in groupby(one["lines"], key=lambda line: line["model"]):
            shown = _table(model, one["currency"])
            for line in lines:
                shown.add_row(*_words(line), f"{line['quantity']:,}", "held" if line["held"] else money(line["amount_micros"]))
            console.print(shown)
        console.print(f"total {money(one['total_micros'])} {one['currency']}{_given_up(one['records_written_off'])}\n")
    if not found["bills"]:
        console.print(f"no bill of {tenant} for {period}: no usage has been priced in it")
    return bool(found["bills"])


def _verify(settings: Settings, tenant: str, period: str, as_json: bool) -> bool:
    reader, away = Reader(settings, "verify"), None
    try:
        running = running_bill(ClickHouse(settings, patience_s=2, answer_s_max=15), tenant, period)
    except ClickHouseUnavailable as e:  # issued bills need nothing but the log
        running, away = None, e
    try:
        schemas, _ = read_schemas(reader)
        compared = verify(reader, Codec(schemas), running, tenant, period)
    finally:
        reader.close()
    if as_json:
        console.print_json(json.dumps([_as_json(c) for c in compared]))
    else:
        for one in compared:
            _print(tenant, period, one)
    if away is not None:
        if not compared:
            raise away
        errors.print(
            f"[yellow]ClickHouse is not available[/]: a running bill of {period} was not checked; the issued ones need only the log"
        )
    if not compared:
        console.print(f"no bill of {tenant} for {period}: there is nothing to verify")
        return False
    difference = sum(abs(line.billed[1] - line.recomputed[1]) for one in compared for line in one.lines)
    agrees = all(one.agrees for one in compared)
    if not as_json:
        console.print(
            f"{'[green]verified' if agrees else '[red]NOT verified'}[/]: {len(compared)} bills recomputed from the log, difference={difference}"
        )
    return agrees


def _print(tenant: str, period: str, one: ComparedBill) -> None:
    console.print(f"[bold]{tenant}, bill {one.number} of {period}[/] ({one.status})")
    for model, lines in groupby(one.lines, key=lambda line: line.key.model):
        shown = _table(model, one.currency, "difference")
        for line in lines:
            (quantity, amount), (quantity_again, amount_again) = line.billed, line.recomputed
            units = _both(f"{quantity:,}", f"{quantity_again:,}")
            amounts = "held" if line.key.held else _both(money(amount), money(amount_again))
            shown.add_row(*_words(line.key._asdict()), units, amounts, str(amount - amount_again), style="" if line.agrees else "red")
        console.print(shown)
    console.print(
        f"total {money(one.billed_micros)} {one.currency}, recomputed {money(one.recomputed_micros)}, difference {one.difference_micros}"
    )
    facts = ", ".join(f"{name} {count}" for name, count in one.facts.items() if count) or "none"
    console.print(f"facts: {facts}{_given_up(one.records_written_off)}\n")
    for wrong in one.wrong:
        console.print(f"[red]{wrong}[/]")


def _given_up(records: int) -> str:
    return f"; records written off: {records}" if records else ""


def _both(billed: str, recomputed: str) -> str:
    """In two lines of a cell where they differ, the recomputed one below."""
    return billed if billed == recomputed else f"{billed}\n≠ {recomputed}"


def _table(model: str, currency: str, *more: str) -> Table:
    """One model's lines: narrow enough for eighty columns."""
    numbers = ("quantity", currency, *more)
    return table("version", "meter", f"{currency} per units", *numbers, whole=numbers[:2], right=numbers, title=model)


def _words(line: dict[str, Any]) -> tuple[str, ...]:
    if line["held"]:
        return line["model_version"], line["meter"], "no price: held"
    price = money(line["amount_per_micros"]).rstrip("0").rstrip(".")
    return line["model_version"], line["meter"], f"{price} / {line['per_units']:,}"


def _as_json(one: ComparedBill) -> dict[str, Any]:
    lines = [{**line.key._asdict(), "billed": line.billed, "recomputed": line.recomputed} for line in one.lines]
    return {
        "status": one.status,
        "number": one.number,
        "billed_micros": one.billed_micros,
        "recomputed_micros": one.recomputed_micros,
        "difference_micros": one.difference_micros,
        "agrees": one.agrees,
        "wrong": one.wrong,
        "lines": lines,
        "facts": dict(one.facts),
        "records_written_off": one.records_written_off,
    }


def money(micros: int) -> str:
    """Whole units with all six places: nothing is rounded for display."""
    sign = "-" if micros < 0 else ""
    return f"{sign}{abs(micros) // UNIT:,}.{abs(micros) % UNIT:06d}"
