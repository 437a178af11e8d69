"""What `status` shows: each part in one word and a few numbers, and the replicas of each model; all asked at once, with one deadline."""

from __future__ import annotations

import http.client
import time
import xmlrpc.client
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from events.process.settings import Settings
from infra.launcher import processes
from infra.launcher.parts import Part
from infra.launcher.paths import PART_VARIABLE, StackPaths
from infra.launcher.probes import Asked, Health, ModelReplicas, ask_serve, check
from infra.launcher.processes import ProcessTable
from infra.launcher.supervision import Supervised, Supervisor

STATUS_S_MAX = 2.0
"""Whoever asks waits no longer, whatever hangs. The command itself takes half a second to start, more under load."""
SUPERVISOR_S_MAX = 1.0
"""Of these: its answer, which takes milliseconds, says whom else to ask."""
NO_ANSWER = Health(ok=False, detail="no answer in time")
NOT_ASKED = Health(ok=False)
WITHOUT_SUPERVISOR = "runs on without its supervisor: `modelmarket down`, then `up`."
SUPERVISOR_HANGS = "its supervisor does not answer: `modelmarket logs supervisor`."
OTHER_SETTINGS = "the stack runs with other settings, which have no such part"
SERVE_HANGS = "Ray Serve did not answer in time"


@dataclass(frozen=True)
class PartStatus:
    name: str
    state: str
    """stopped, starting, healthy, unhealthy, restarting, stopping, failed, done; unsupervised: it runs, and no supervisor restarts it."""
    detail: str
    pid: int
    pss_bytes: int
    uptime_s: int
    lag: int | None

    @property
    def healthy(self) -> bool:
        return self.state in ("healthy", "done")


@dataclass(frozen=True)
class StackStatus:
    parts: tuple[PartStatus, ...]
    models: tuple[ModelReplicas, ...]
    models_unknown: str
    """Why Ray Serve told nothing of the models; empty when it did, and when Ray does not run."""

    @property
    def healthy(self) -> bool:
        return all(part.healthy for part in self.parts) and all(model.healthy for model in self.models) and not self.models_unknown


def state_of(part: Part, process: Supervised, health: Health) -> str:
    match process.state:
        case "EXITED" if part.runs_once:
            return "done" if process.exit_status == 0 else "failed"
        case "RUNNING" | "STARTING" if part.runs_once:
            return "starting"
        case "RUNNING" | "STARTING" if health.ok:
            return "healthy"
        case "RUNNING" | "STARTING":
            return "starting" if process.uptime_s < part.healthy_s_max else "unhealthy"
        case "BACKOFF":
            return "restarting"
        case "STOPPED" | "STOPPING" as state:
            return state.lower()
        case _:
            return "failed"


@dataclass(frozen=True)
class _Supervision:
    """What the supervisor says of the parts; `known` is None while there is none or it hangs, and `trouble` says which."""

    known: Mapping[str, Supervised] | None
    trouble: str = ""


@dataclass(frozen=True)
class _Members:
    """A part's processes, and what is asked of them."""

    part: Part
    members: set[int]
    health: Asked[Health] | None
    memory: Asked[int] | None


class StatusReader:
    """Reads what a stack, or some parts of it, are now. Takes at most STATUS_S_MAX."""

    def __init__(self, settings: Settings, paths: StackPaths, parts: Mapping[str, Part], supervisor: Supervisor) -> None:
        self._settings, self._paths, self._parts, self._supervisor = settings, paths, parts, supervisor

    def stack(self) -> StackStatus:
        deadline = time.monotonic() + STATUS_S_MAX
        models = Asked(partial(ask_serve, self._settings, self._paths))
        parts = self._read(self._parts, deadline)
        if not any(part.pid for part in parts if part.name == "ray"):
            return StackStatus(parts, (), "")
        answer = models.by(deadline, SERVE_HANGS)
        return StackStatus(parts, (), answer) if isinstance(answer, str) else StackStatus(parts, answer, "")

    def parts(self, names: Iterable[str]) -> tuple[PartStatus, ...]:
        return self._read(names, time.monotonic() + STATUS_S_MAX)

    def _read(self, names: Iterable[str], deadline: float) -> tuple[PartStatus, ...]:
        asked = Asked(self._ask_supervisor)
        table = ProcessTable.read()
        supervision = asked.by(time.monotonic() + SUPERVISOR_S_MAX, _Supervision(None, SUPERVISOR_HANGS))
        found = [self._ask(self._parts[name], supervision, table) for name in names]
        return tuple(self._status(one, supervision, deadline) for one in found)

    def _ask_supervisor(self) -> _Supervision:
        try:
            return _Supervision(self._supervisor.known())
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return _Supervision(None, WITHOUT_SUPERVISOR)  # no socket, or nobody behind it

    def _ask(self, part: Part, supervision: _Supervision, table: ProcessTable) -> _Members:
        if supervision.known is None:
            members = table.marked(self._paths.mark, f"{PART_VARIABLE}={part.name}")
        else:
            process = supervision.known.get(part.name)
            members = table.tree(process.pid) if process and process.pid else set[int]()
        if not members:
            return _Members(part, members, None, None)
        health = None if part.runs_once else Asked(partial(check, part.probe))
        return _Members(part, members, health, Asked(partial(processes.pss_bytes, members)))

    def _status(self, found: _Members, supervision: _Supervision, deadline: float) -> PartStatus:
        part, main = found.part, oldest(found.members) or 0
        health = found.health.by(deadline, NO_ANSWER) if found.health else NOT_ASKED
        memory = found.memory.by(deadline, 0) if found.memory else 0
        uptime = processes.uptime_s(main) if main else 0
        if supervision.known is None:
            if not main:
                return PartStatus(part.name, "stopped", "", 0, 0, 0, None)
            detail = " ".join(filter(None, (supervision.trouble, health.detail)))
            return PartStatus(part.name, "unsupervised", detail, main, memory, uptime, health.lag)
        process = supervision.known.get(part.name)
        if process is None:
            return PartStatus(part.name, "stopped", OTHER_SETTINGS, 0, 0, 0, None)
        return PartStatus(part.name, state_of(part, process, health), health.detail, process.pid, memory, process.uptime_s, health.lag)


def oldest(members: set[int]) -> int | None:
    """By age, not by number: process ids start again from the bottom."""
    return max(members, key=processes.uptime_s, default=None)
