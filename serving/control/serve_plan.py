"""What Ray should be running, as the facts say, and what may be done to get there (K18). Pure.

The declarative set is always whole: what it omits, Ray deletes. So an application leaves the set only because of a fact of its
own, never because a fold has not got that far; and a set older than the one applied is never applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from events.facts.deployments import ServiceSpec
from serving.gateway.routes import Routes, Version
from serving.serve_names import BUILD_GATEWAY, BUILD_MODEL, GATEWAY_APP, GATEWAY_DEPLOYMENT

REMOVED_SHARE_MAX = 0.2
"""More models than this leaving at once needs a person; one at a time may always go. What drains counts: it is about to leave."""

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Generation:
    """Which facts a set was made of. It travels as the gateway's `user_config`, so Ray keeps it with the set itself."""

    log_id: str
    store: str
    position: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What the set needs to know besides the facts."""

    host: str
    gateway_port: int
    gateways_per_node: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What Ray says it was told, and how it goes. `generation` is None where no set of ours was ever applied."""

    generation: Generation | None
    apps: Mapping[str, Config] = field(default_factory=dict[str, Config])


@dataclass(frozen=True, slots=True)
class Hold:
    """Something is not done, and this is why."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Send this set. `removed` are the applications that leave with it."""

    config: Config
    removed: tuple[str, ...]
    unexplained: tuple[str, ...]
    """Applications no fact asks for and no fact took away: they stay, and somebody should look."""
    held: Hold | None = None
    """Applications that facts took away and that stay until a person agrees."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Ray has been told already."""

    unexplained: tuple[str, ...] = ()
    held: Hold | None = None


Plan = Apply | Keep | Hold
"""A `Hold` alone: nothing is sent at all."""


def model_app(version: Version) -> Config:
    spec = ServiceSpec().model_dump() | dict(version.spec or {})
    args = {
        "model": version.model,
        "model_version": version.version,
        "provider": version.provider,
        "artifact": version.artifact,
        "interface": {
            "inputs": [asdict(t) | {"shape": list(t.shape)} for t in version.interface.inputs],
            "outputs": [asdict(t) | {"shape": list(t.shape)} for t in version.interface.outputs],
        },
        "spec": spec,
    }
    return {"name": version.address, "route_prefix": None, "import_path": BUILD_MODEL, "args": args}


def gateway_app(shape: Shape, generation: Generation) -> Config:
    return {
        "name": GATEWAY_APP,
        "route_prefix": "/",
        "import_path": BUILD_GATEWAY,
        "args": {"replicas": shape.gateways_per_node * shape.nodes, "per_node": shape.gateways_per_node},
        "deployments": [{"name": GATEWAY_DEPLOYMENT, "user_config": asdict(generation)}],
    }


def plan(
    routes: Routes,
    now: Generation,
    applied: Applied,
    shape: Shape,
    *,
    leaving: frozenset[str] = frozenset(),
    approved_position: int = 0,
    again: frozenset[str] = frozenset(),
) -> Plan:
    """`leaving` are applications whose time to drain at the gateways is not over: they stay for now. `approved_position`: a person
    agreed to the removals decided up to there, and to no later ones. `again` are applications to be started once more."""
    if (refused := _foreign(now, applied.generation)) is not None:
        return refused
    versions = routes.versions()
    there = {name: app for name, app in applied.apps.items() if name != GATEWAY_APP}
    wanted = {v.address: _attempted(model_app(v), applied, again) for v in versions if v.deployed}
    withdrawn = {v.address: v.withdrawn_at for v in versions if v.withdrawn and not v.deployed and v.address in there}
    unexplained = tuple(sorted(there.keys() - wanted.keys() - withdrawn.keys()))
    held = {name: at for name, at in withdrawn.items() if at > approved_position}
    hold = _mass_removal(held, there)
    kept = {*unexplained, *(leaving & withdrawn.keys()), *(held if hold else ())}
    removed = tuple(sorted(withdrawn.keys() - kept))
    apps = wanted | {name: there[name] for name in kept}
    gateway = _attempted(gateway_app(shape, now), applied, again)
    if not removed and _same(apps, gateway, applied):
        return Keep(unexplained, hold)
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": shape.host, "port": shape.gateway_port},
        "applications": [gateway, *(apps[name] for name in sorted(apps))],
    }
    return Apply(config, removed, unexplained, hold)


def attempt_of(app: Config | None) -> int:
    """The number of the attempt that Ray was told; it is only said from the second on."""
    return int((app or {}).get("args", {}).get("attempt", 1))


def _attempted(app: Config, applied: Applied, again: frozenset[str]) -> Config:
    """The application with the attempt Ray is at, or one more: Ray starts what failed anew only when it is told something else."""
    there = applied.apps.get(app["name"])
    if there is None or {k: v for k, v in there.get("args", {}).items() if k != "attempt"} != app["args"]:
        return app
    attempt = attempt_of(there) + (app["name"] in again)
    return app if attempt == 1 else app | {"args": app["args"] | {"attempt": attempt}}


def _foreign(now: Generation, applied: Generation | None) -> Hold | None:
    if applied is None:
        return None
    if applied.log_id != now.log_id:
        message = f"Ray serves log {applied.log_id}, this is log {now.log_id}"
        return Hold("wrong_log", message, "point the controller at the log Ray was set up from, or start Ray anew")
    if applied.position > now.position:
        message = f"Ray serves position {applied.position}, this fold is at {now.position}"
        return Hold("behind", message, "wait for the log to catch up; if it was restored, its new epoch must come first")
    if applied.store != now.store and applied.store and not now.store:
        return Hold("wrong_store", f"Ray serves store {applied.store}, this log has none", "point the controller at the right log")
    return None


def _mass_removal(held: Mapping[str, int], there: Mapping[str, Config]) -> Hold | None:
    """`held`: what would leave without anybody's word, and the position of the fact that took it away."""

    def models(names: Mapping[str, object]) -> set[str]:
        return {str(there[name].get("args", {}).get("model", name)) for name in names}

    gone, all_models = models(held), models(there)
    if len(gone) <= 1 or len(gone) <= REMOVED_SHARE_MAX * len(all_models):
        return None
    message = f"{len(gone)} of {len(all_models)} models would leave at once, and stay loaded: {', '.join(sorted(gone))[:300]}"
    remedy = f"if that is meant, set MODELMARKET_REMOVALS_APPROVED_POSITION={max(held.values())} and restart the controller"
    return Hold("mass_removal", message, remedy)


def _same(apps: Mapping[str, Config], gateway: Config, applied: Applied) -> bool:
    """Whether Ray was told this set. A newer position alone is no reason: it is told with the next change."""
    if {*apps, GATEWAY_APP} != set(applied.apps):
        return False
    there = applied.apps
    return there[GATEWAY_APP]["args"] == gateway["args"] and all(there[name]["args"] == app["args"] for name, app in apps.items())
