"""The state of a part, as one word and a few numbers, from the supervisor and the part's own health."""

from __future__ import annotations

from dataclasses import dataclass

from infra.launcher.parts import Part
from infra.launcher.probes import Health
from infra.launcher.supervision import Supervised


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
