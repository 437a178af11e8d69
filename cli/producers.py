"""`modelmarket producers`: the epochs that write usage; a dead one is written off by two admins (K13)."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from cli.admin_client import JsonFlag, KeyFile, YesFlag, call_command_api, console, instant_text
from cli.failures import explained_failures
from cli.tables import table
from events.process.settings import Settings
from projections.ingest.clickhouse import ClickHouse
from projections.usage.producer_epochs import Epoch, epochs

app = typer.Typer(help="Epochs of producers: list them, write off dead ones.", no_args_is_help=True)
QUIET_S_MIN = 600
"""A younger epoch, or one with a younger fact, may be alive: its write-off needs --force."""
ForceFlag = Annotated[bool, typer.Option("--force", help="Even if its last fact is younger than ten minutes.")]
EpochArgument = Annotated[str, typer.Argument(help="The epoch, as `producers list` shows it.")]


@app.command("list")
def list_(everything: Annotated[bool, typer.Option("--all", help="Also epochs that ended.")] = False, as_json: JsonFlag = False) -> None:
    """Epochs that are open, newest first, and when the last fact of each came."""
    with explained_failures():
        found = epochs(ClickHouse(Settings()), only_open=not everything)
    if as_json:
        console.print_json(json.dumps([asdict(e) for e in found]))
        return
    listed = table("epoch of producer on host", "status", "opened (UTC)", "last fact (UTC)", whole=["epoch of producer on host"])
    for e in found:
        who = f"{e.epoch}\n{e.producer}\n{e.host}"
        listed.add_row(escape(who), escape(_status(e)), instant_text(e.opened_at), instant_text(e.last_fact_us))
    console.print(listed if found else "no epoch is open")


@app.command("write-off")
def write_off(
    epoch: EpochArgument,
    reason: Annotated[str, typer.Option("--reason", help="How it is known that it is dead.", prompt=True)],
    force: ForceFlag = False,
    key_file: KeyFile = None,
) -> None:
    """Request to write off a dead epoch; another admin approves. Facts it wrote stay counted."""
    settings = Settings()
    with explained_failures():
        found = _find(settings, epoch, force)
        answer = call_command_api(settings, key_file, "POST", f"/v1/write-offs/producers/{found.producer}/{epoch}", {"reason": reason})
    console.print(f"requested by {answer['requested_by']}: epoch {epoch} of {found.producer}", highlight=False)
    console.print(f"another admin: modelmarket producers approve {epoch} --key-file FILE", highlight=False)


@app.command("approve")
def approve(
    epoch: EpochArgument,
    yes: YesFlag = False,
    force: ForceFlag = False,
    key_file: KeyFile = None,
) -> None:
    """Approve another admin's request. Bills cut later do not wait for the epoch."""
    settings = Settings()
    with explained_failures():
        found = _find(settings, epoch, force)
        request = call_command_api(settings, key_file, "GET", f"/v1/write-offs/producers/{found.producer}/{epoch}")
        console.print(f"{request['requested_by']} requests to write it off: {request['reason']}", highlight=False, markup=False)
        if not yes:
            typer.confirm("write it off?", abort=True)
        answer = call_command_api(settings, key_file, "POST", f"/v1/write-offs/producers/{found.producer}/{epoch}/approve")
    console.print(f"written off: epoch {epoch}, requested by {answer['requested_by']}, approved by {answer['approver']}", highlight=False)


def _find(settings: Settings, epoch: str, force: bool) -> Epoch:
    """The epoch, after printing when its last fact came. One that may be alive ends the command."""
    found = next(iter(epochs(ClickHouse(settings), only_open=False, epoch=epoch)), None)
    if found is None:
        console.print(f"no epoch {epoch} is in the table: `modelmarket producers list --all`", highlight=False)
        raise typer.Exit(1)
    line = f"epoch {epoch} of {found.producer} on {found.host}: {_status(found)}, opened {instant_text(found.opened_at)} UTC"
    console.print(f"{line}, last fact {instant_text(found.last_fact_us)} UTC", highlight=False, markup=False)
    quiet_s = time.time() - max(found.opened_at, found.last_fact_us) / 1e6
    if quiet_s < QUIET_S_MIN and not force:
        console.print(f"[red]its last fact is {quiet_s:.0f} s old, it may be alive:[/] make sure that its process is gone, then --force")
        raise typer.Exit(1)
    return found


def _status(e: Epoch) -> str:
    return f"open, write-off requested by {e.requested_by}" if e.status == "open" and e.requested_by else e.status.replace("_", " ")
