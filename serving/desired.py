"""What Ray should be running, as the facts say, and what may be done to get there (K18). Pure.

The declarative set is always whole: what it omits, Ray deletes. So an application leaves the set only because of a fact of its
own, never because a fold has not got that far; and a set older than the one applied is never applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from events.facts.deployments import ServiceSpec
from serving.routes import Routes, Version

GATEWAY_APP = "gateway"
MODEL_DEPLOYMENT = "model"
REMOVED_SHARE_MAX = 0.2
"""More models than this leaving at once needs a person; one at a time may always go."""

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
class Apply:
    """Send this set. `removed` are the applications that leave with it."""

    config: Config
    removed: tuple[str, ...]
    unexplained: tuple[str, ...]
    """Applications no fact asks for and no fact took away: they stay, and somebody should look."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Ray has been told already."""

    unexplained: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing is sent, and this is why."""

    code: str
    message: str
    remedy: str


Plan = Apply | Keep | Hold


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
    return {"name": version.address, "route_prefix": None, "import_path": "serving.ray_apps:build_model", "args": args}


def gateway_app(shape: Shape, generation: Generation) -> Config:
    return {
        "name": GATEWAY_APP,
        "route_prefix": "/",
        "import_path": "serving.ray_apps:build_gateway",
        "args": {"replicas": shape.gateways_per_node * shape.nodes, "per_node": shape.gateways_per_node},
        "deployments": [{"name": "gateway", "user_config": asdict(generation)}],
    }


def plan(
    routes: Routes, now: Generation, applied: Applied, shape: Shape, *, leaving: frozenset[str] = frozenset(), approved_position: int = 0
) -> Plan:
    """`leaving` are applications whose time to drain at the gateways is not over: they stay for now.
    `approved_position`: a person agreed to removals decided up to there."""
    if (refused := _foreign(now, applied.generation)) is not None:
        return refused
    versions = routes.versions()
    wanted = {v.address: model_app(v) for v in versions if v.deployed}
    withdrawn = {v.address for v in versions if v.withdrawn}
    there = {name: app for name, app in applied.apps.items() if name != GATEWAY_APP}
    unexplained = tuple(sorted(there.keys() - wanted.keys() - withdrawn))
    kept = {name: there[name] for name in (*unexplained, *(leaving & there.keys() - wanted.keys()))}
    removed = tuple(sorted(there.keys() - wanted.keys() - kept.keys()))
    if (too_many := _mass_removal(removed, there, now, approved_position)) is not None:
        return too_many
    apps = wanted | kept
    gateway = gateway_app(shape, now)
    if not removed and _same(apps, gateway, applied):
        return Keep(unexplained)
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": shape.host, "port": shape.gateway_port},
        "applications": [gateway, *(apps[name] for name in sorted(apps))],
    }
    return Apply(config, removed, unexplained)


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


def _mass_removal(removed: tuple[str, ...], there: Mapping[str, Config], now: Generation, approved_position: int) -> Hold | None:
    def models(names: tuple[str, ...] | Mapping[str, Config]) -> set[str]:
        return {str(there[name].get("args", {}).get("model", name)) for name in names}

    gone, all_models = models(removed), models(there)
    if len(gone) <= 1 or len(gone) <= REMOVED_SHARE_MAX * len(all_models) or now.position <= approved_position:
        return None
    message = f"{len(gone)} of {len(all_models)} models would leave at once: {', '.join(sorted(gone))[:300]}"
    return Hold(
        "mass_removal", message, f"if that is meant, set MODELMARKET_REMOVALS_APPROVED_POSITION={now.position} and restart the controller"
    )


def _same(apps: Mapping[str, Config], gateway: Config, applied: Applied) -> bool:
    """Whether Ray was told this set. A newer position alone is no reason: it is told with the next change."""
    if {*apps, GATEWAY_APP} != set(applied.apps):
        return False
    there = applied.apps
    return there[GATEWAY_APP]["args"] == gateway["args"] and all(there[name]["args"] == app["args"] for name, app in apps.items())
