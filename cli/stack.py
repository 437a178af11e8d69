"""`modelmarket up`, `down`, `restart`, `status` and `logs`: the local stack from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.tables import table
from events.process.settings import Settings
from infra.launcher import LaunchFailed, PartStatus, Stack
from infra.launcher.probes import ModelReplicas

console = Console()
errors = Console(stderr=True)

FOLLOW_POLL_S = 0.3
LINE_TAIL_MAX = 10_000
"""Lines `logs` shows at most of the past."""

COLOURS = {"healthy": "green", "done": "green", "starting": "yellow", "restarting": "yellow", "stopping": "yellow", "stopped": "dim"}


def up(parts: Annotated[list[str] | None, typer.Argument(help="Only these parts; all when none is named.")] = None) -> None:
    """Start the stack, each part when what it needs is healthy; return when all are."""
    stack, began = local_stack(), time.monotonic()
    try:
        started = stack.up(parts or None, progress=print_progress)
    except LaunchFailed as failure:
        exit_with(failure)
    if not started:
        console.print(f"already up: {stack.settings.gateway}")
        return
    console.print(f"[green]up[/] after {time.monotonic() - began:.1f} s")
    console.print(f"  gateway   {stack.settings.gateway}")
    console.print(f"  commands  {stack.settings.commands}/docs")
    console.print(f"  queries   {stack.settings.queries}/docs")
    console.print(f"  admin key {stack.paths.admin_key}")


def down() -> None:
    """Stop every part, in reverse order, and end every process. The data stays."""
    stack, began = local_stack(), time.monotonic()
    try:
        ended = stack.down(progress=print_progress)
    except LaunchFailed as failure:
        exit_with(failure)
    console.print(f"down after {time.monotonic() - began:.1f} s; the data stays in {stack.settings.folder}" if ended else "already down")


def restart(part: Annotated[str, typer.Argument(help="A part, as `status` names it.")]) -> None:
    """End one part and start it again; return when it is healthy. The others go on meanwhile."""
    stack = local_stack()
    try:
        stack.restart(part, progress=print_progress)
    except LaunchFailed as failure:
        exit_with(failure)


def status(as_json: Annotated[bool, typer.Option("--json", help="One JSON document for programs.")] = False) -> None:
    """Show the state of every part, and the replicas of every model. Exit code 1 when a part is not healthy or a model has no replica."""
    stack = local_stack()
    now = stack.status()
    if as_json:
        parts = [{**asdict(part), "healthy": part.healthy} for part in now.parts]
        models = [{**asdict(model), "healthy": model.healthy} for model in now.models]
        console.print_json(json.dumps({"parts": parts, "models": models, "models_unknown": now.models_unknown}))
    else:
        console.print(table_of(stack, now.parts))
        if now.models:
            console.print(models_table(now.models))
        elif now.models_unknown:
            console.print(f"replicas of models: [red]{escape(now.models_unknown)}[/]", highlight=False)
    raise typer.Exit(0 if now.healthy else 1)


def logs(
    part: Annotated[str | None, typer.Argument(help="One part; all when none is named.")] = None,
    follow: Annotated[bool, typer.Option("-f", help="Follow: print new lines until Ctrl-C.")] = False,
    count: Annotated[int, typer.Option("-n", help="Lines of the past, per part.", min=0, max=LINE_TAIL_MAX)] = 20,
) -> None:
    """Print the newest log lines of a part, or of all."""
    stack = local_stack()
    try:
        names = list(stack.wanted(None if part is None else [part]))
    except LaunchFailed as failure:
        exit_with(failure)
    files = {name: stack.paths.log(name) for name in names if stack.paths.log(name).exists()}
    if not files:
        errors.print(f"no log yet in {stack.paths.logs}")
        raise typer.Exit(1)
    followed = {name: Followed(path) for name, path in files.items()}
    for name in files:
        for line in stack.tail(name, count):
            show(name, line, several=len(names) > 1)
    while follow:
        for name, log in followed.items():
            for line in log.new_lines():
                show(name, line, several=len(names) > 1)
        time.sleep(FOLLOW_POLL_S)


class Followed:
    """A log that grows, and is now and then replaced by an empty one when it has grown too large."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = path.stat().st_size
        self.file_id = path.stat().st_ino
        self.begun = b""

    def new_lines(self) -> Iterator[str]:
        try:
            now = self.path.stat()
        except FileNotFoundError:  # just being replaced
            return
        if now.st_ino != self.file_id or now.st_size < self.position:
            self.file_id, self.position, self.begun = now.st_ino, 0, b""
        with self.path.open("rb") as file:
            file.seek(self.position)
            new = self.begun + file.read()
            self.position = file.tell()
        *whole, self.begun = new.split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")


def show(part: str, line: str, *, several: bool) -> None:
    prefix = f"[cyan]{part:>10}[/] " if several else ""
    console.print(f"{prefix}{escape(line)}", soft_wrap=True, highlight=False)


def local_stack() -> Stack:
    """The stack of these settings; ends the program where set-up is not complete."""
    try:
        return Stack(Settings())
    except LaunchFailed as failure:
        exit_with(failure)


def print_progress(part: str, what: str) -> None:
    console.print(f"  {part:<12} {escape(what)}", highlight=False)


def exit_with(failure: LaunchFailed) -> NoReturn:
    errors.print(f"[red]{escape(str(failure))}[/]", soft_wrap=True, highlight=False)
    raise typer.Exit(1)


def table_of(stack: Stack, parts: Sequence[PartStatus]) -> Table:
    numbers, title = ("pid", "memory", "up for", "lag"), f"stack {stack.settings.stack} in {stack.settings.folder}"
    made = table("part", "state", "detail", *numbers, whole=["part", "state", "pid"], right=numbers, title=title)
    for part in parts:
        colour = COLOURS.get(part.state, "red")
        memory = f"{part.pss_bytes / 1e6:.0f} MB" if part.pss_bytes else ""
        uptime = duration(part.uptime_s) if part.pid else ""
        lag = "" if part.lag is None else str(part.lag)
        made.add_row(part.name, f"[{colour}]{part.state}[/]", escape(part.detail[:60]), str(part.pid or ""), memory, uptime, lag)
    made.add_section()
    own = sum(part.pss_bytes for part in parts)
    made.add_row("all", "", "", "", f"{own / 1e6:.0f} MB", "", "")
    return made


def models_table(models: Sequence[ModelReplicas]) -> Table:
    made = table("model", "version", "state", "replicas", "detail", right=["replicas"], title="models")
    for model in models:
        colour = "green" if model.running >= model.wanted and model.state == "running" else "yellow" if model.healthy else "red"
        state, replicas = f"[{colour}]{escape(model.state)}[/]", f"[{colour}]{model.running} of {model.wanted}[/]"
        made.add_row(escape(model.model), escape(model.version), state, replicas, escape(model.detail[:60]))
    return made


def duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
