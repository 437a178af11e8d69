"""Waits until a part that was started is healthy, and says why when it will not become so."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from infra.launcher.failure import LaunchFailed
from infra.launcher.parts import Part
from infra.launcher.paths import StackPaths
from infra.launcher.probes import Health, check
from infra.launcher.supervision import Supervisor

POLL_S = 0.2
CRASHES_MAX = 3
"""A part that ends so often while it is waited for will not come up by waiting longer."""
LOG_TAIL_LINES = 15


def wait_until_healthy(supervisor: Supervisor, paths: StackPaths, part: Part, timeout_s: float, cancelled: threading.Event) -> None:
    """Raises LaunchFailed when the part fails, keeps ending or is not healthy after `timeout_s`, and once `cancelled` is set."""
    deadline = time.monotonic() + timeout_s
    starts: set[int] = set()
    while True:
        health = _health(supervisor, paths, part, starts)
        if health.ok:
            return
        if cancelled.is_set():
            raise LaunchFailed(
                "cancelled", f"{part.name} was still starting when another part failed", part=part.name, remedy="mend that part first"
            )
        if len(starts) > CRASHES_MAX:
            raise _failed(paths, part, "part-crashes", f"{part.name} ended {len(starts) - 1} times while starting")
        if time.monotonic() > deadline:
            raise _failed(paths, part, "part-not-healthy", f"{part.name} is not healthy after {timeout_s:.0f} s ({health.detail})")
        time.sleep(POLL_S)


def _health(supervisor: Supervisor, paths: StackPaths, part: Part, starts: set[int]) -> Health:
    """Asks the part only while its process runs, so that the answer of another process on its port does not count."""
    process = supervisor.recent(part.name)
    if process.started:
        starts.add(process.started)
    if part.runs_once:
        if process.state == "EXITED" and process.exit_status != 0:
            raise _failed(paths, part, "part-failed", f"{part.name} ended with {process.exit_status}")
        return Health(ok=process.state == "EXITED", detail=process.state.lower())
    if process.state == "FATAL":
        raise _failed(paths, part, "part-failed", f"{part.name} could not be started")
    return check(part.probe) if process.pid else Health(ok=False, detail=process.state.lower())


def _failed(paths: StackPaths, part: Part, code: str, message: str) -> LaunchFailed:
    log = paths.log(part.name)
    return LaunchFailed(code, message, part=part.name, remedy=f"read its log: {log}", log_tail="\n".join(tail(log, LOG_TAIL_LINES)))


def tail(log: Path, lines: int) -> list[str]:
    """The newest lines of a log; none when there is no file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * lines))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
