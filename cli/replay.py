"""What is made again from the log: `modelmarket replay usage`, the usage tables beside the live ones, and every row that differs;
`modelmarket store rebuild`, the event store of decisions."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cli.failures import explained_failures, failed
from cli.tables import table
from commands.store.rebuild import NotRebuilt, rebuild_store
from events.process.settings import Settings
from projections.usage.rebuild import BESIDE, TABLE, LiveIsBehind, Rebuild, Report

replay = typer.Typer(help="Rebuild a view from the log and compare.", no_args_is_help=True)
store = typer.Typer(help="The event store of decisions.", no_args_is_help=True)
console = Console()


@store.callback()
def choose_store() -> None:
    """The event store of decisions."""


@store.command("rebuild")
def rebuild() -> None:
    """Fill an empty store from the log, after the store was lost. End the command API and the relay first, and move the old store away."""
    try:
        count = rebuild_store(Settings())
    except NotRebuilt as e:
        raise failed("the store was not rebuilt", str(e), "docs/operations.md, 'The relay ends with 2'", exit_code=1) from e
    console.print(f"rebuilt {count} facts; now `modelmarket up`")


@replay.callback()
def choose() -> None:
    """Rebuild a view from the log and compare."""


@replay.command("usage")
def usage(
    switch: Annotated[bool, typer.Option("--switch", help="Put the rebuilt table in place of the live one; the old one is kept.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help=f"Leave the rebuilt table and its views as {BESIDE}.")] = False,
) -> None:
    """Rebuild usage beside the live tables and compare them row by row; exit code 1 when a row differs. Workers may go on."""
    with explained_failures():
        report = _rebuild(switch=switch, keep=keep)
    raise typer.Exit(0 if report.equal else 1)


def _rebuild(*, switch: bool, keep: bool) -> Report:
    rebuild = Rebuild(Settings())
    try:
        report = _run(rebuild)
        _show(report)
        if switch:
            kept = rebuild.switch()
            console.print(f"switched: {TABLE} is the rebuilt table, the old one is kept as [bold]{kept}[/]")
        elif keep:
            console.print(f"kept as [bold]{BESIDE}[/] and its views")
        else:
            rebuild.drop()
        return report
    except LiveIsBehind as e:
        remedy = "see with `modelmarket status` whether a worker runs, then run this again"
        raise failed("the live table is behind", str(e), remedy, exit_code=2) from e
    finally:
        rebuild.close()


def _run(rebuild: Rebuild) -> Report:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("replaying usage", total=None)
        return rebuild.run(lambda done, total: bar.update(task, completed=done, total=total))


def _show(report: Report) -> None:
    cuts = " ".join(f"{p}:{offset}" for p, offset in sorted(report.cut.items()))
    console.print(f"compared {report.rows:,} rows below {cuts} in {report.seconds:.1f} s; {report.unreadable} of them unreadable")
    if report.equal:
        console.print("[green]difference: 0 rows[/]")
        return
    listed = table("partition", "offset", "what", "columns", whole=["offset"], title=f"{report.differences:,} rows differ")
    for d in report.listed:
        listed.add_row(str(d.partition), str(d.offset), d.what, ", ".join(d.columns))
    console.print(listed)
    if report.differences > len(report.listed):
        console.print(f"… and {report.differences - len(report.listed):,} more")
