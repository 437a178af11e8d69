"""The configuration that Ray Serve should have, as the facts say, and whether it may be applied (K18). Pure.

Serve's declarative configuration is always complete: Ray deletes what it omits. So an application is removed only because of a fact
about it, never because the fold is behind; and a configuration older than the applied one is never applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from serving.gateway.served_models import Version
from serving.model_interface import Tensor
from serving.serve_names import APPLIED_APP, APPLIED_DEPLOYMENT, BUILD_APPLIED, BUILD_MODEL

REMOVED_SHARE_MAX = 0.2
"""A larger share of the models removed at once needs the approval of a person; one at a time may always go. Draining ones count too."""

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ConfigVersion:
    """The facts that a configuration was made of. It is the `user_config` of an application of its own, so Ray keeps it with the configuration."""

    log_id: str
    store: str
    position: int


@dataclass(frozen=True, slots=True)
class AppliedConfig:
    """The configuration that Ray has. `version` is None where the controller never applied one."""

    version: ConfigVersion | None
    apps: Mapping[str, Config] = field(default_factory=dict[str, Config])


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something may not be applied, and why."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class ApplyConfig:
    """Apply this. `removed` are the applications that it ends."""

    config: Config
    removed: tuple[str, ...]
    unknown_apps: tuple[str, ...]
    """Applications that no fact asks for and no fact withdrew: they stay, and an operator should look."""
    blocked: Blocked | None = None
    """Removals that wait until a person approves."""


@dataclass(frozen=True, slots=True)
class KeepConfig:
    """Ray has this configuration already."""

    unknown_apps: tuple[str, ...] = ()
    blocked: Blocked | None = None


Plan = ApplyConfig | KeepConfig | Blocked
"""`Blocked` alone: nothing is applied at all."""


def model_app(version: Version) -> Config:
    args = {
        "model": version.model,
        "model_version": version.version,
        "provider": version.provider,
        "artifact": version.artifact,
        "interface": {
            "inputs": _tensors(version.interface.inputs),
            "outputs": _tensors(version.interface.outputs),
        },
        "spec": version.spec.model_dump(),
    }
    return {"name": version.address, "route_prefix": None, "import_path": BUILD_MODEL, "args": args}


def _tensors(tensors: Sequence[Tensor]) -> list[Config]:
    """What a replica needs of them. Not what only callers are held to: another value here would restart every replica of the market."""
    return [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in tensors]


def applied_app(version: ConfigVersion) -> Config:
    return {
        "name": APPLIED_APP,
        "route_prefix": None,
        "import_path": BUILD_APPLIED,
        "args": {},
        "deployments": [{"name": APPLIED_DEPLOYMENT, "user_config": asdict(version)}],
    }


def plan(
    versions: Sequence[Version],
    now: ConfigVersion,
    applied: AppliedConfig,
    *,
    draining: frozenset[str] = frozenset(),
    approved_position: int = 0,
    retried: frozenset[str] = frozenset(),
) -> Plan:
    """`versions`: all that facts know. `draining`: withdrawn applications that stay for now, until every gateway has folded that they take
    no calls. `approved_position`: a person approved the removals decided up to there, and no later ones. `retried`: failed applications to
    start once more."""
    if (blocked := _blocked_by_applied(now, applied.version)) is not None:
        return blocked
    running = {name: app for name, app in applied.apps.items() if name != APPLIED_APP}
    wanted = {v.address: _with_attempt(model_app(v), applied, retried) for v in versions if v.deployed}
    withdrawn = {v.address: v.withdrawn_at for v in versions if v.withdrawn_at is not None and v.address in running}
    unknown_apps = tuple(sorted(running.keys() - wanted.keys() - withdrawn.keys()))
    unapproved = {name: at for name, at in withdrawn.items() if at > approved_position}
    mass_removal = _mass_removal(unapproved, running)
    kept = {*unknown_apps, *(draining & withdrawn.keys()), *(unapproved if mass_removal else ())}
    removed = tuple(sorted(withdrawn.keys() - kept))
    apps = wanted | {name: running[name] for name in kept}
    version = _with_attempt(applied_app(now), applied, retried)
    if not removed and _already_applied(apps, version, applied):
        return KeepConfig(unknown_apps, mass_removal)
    config = serve_config([version, *(apps[name] for name in sorted(apps))])
    return ApplyConfig(config, removed, unknown_apps, mass_removal)


def serve_config(applications: Sequence[Config]) -> Config:
    """The whole of it. Gateways call replicas through handles: Serve has no HTTP server."""
    return {"proxy_location": "Disabled", "applications": list(applications)}


def attempt_of(app: Config | None) -> int:
    """The number of the attempt in an application's arguments; it stands there from the second on."""
    return int((app or {}).get("args", {}).get("attempt", 1))


def _with_attempt(app: Config, applied: AppliedConfig, retried: frozenset[str]) -> Config:
    """The application with its present attempt, or one more: Ray starts a failed application again only when its arguments change."""
    there = applied.apps.get(app["name"])
    if there is None or {k: v for k, v in there.get("args", {}).items() if k != "attempt"} != app["args"]:
        return app
    attempt = attempt_of(there) + (app["name"] in retried)
    return app if attempt == 1 else app | {"args": app["args"] | {"attempt": attempt}}


def _blocked_by_applied(now: ConfigVersion, applied: ConfigVersion | None) -> Blocked | None:
    if applied is None:
        return None
    if applied.log_id != now.log_id:
        message = f"Ray serves log {applied.log_id}, this is log {now.log_id}"
        return Blocked("wrong_log", message, "point the controller at the log Ray was set up from, or start Ray anew")
    if applied.position > now.position:
        message = f"Ray serves position {applied.position}, this fold is at {now.position}"
        return Blocked("behind", message, "wait for the log to catch up; if it was restored, its new epoch must come first")
    if applied.store != now.store and applied.store and not now.store:
        return Blocked("wrong_store", f"Ray serves store {applied.store}, this log has none", "point the controller at the right log")
    return None


def _mass_removal(unapproved: Mapping[str, int], running: Mapping[str, Config]) -> Blocked | None:
    """`unapproved`: applications to remove, and the position of the fact that withdrew each."""

    def models(names: Mapping[str, object]) -> set[str]:
        return {str(running[name].get("args", {}).get("model", name)) for name in names}

    gone, all_models = models(unapproved), models(running)
    if len(gone) <= 1 or len(gone) <= REMOVED_SHARE_MAX * len(all_models):
        return None
    message = f"{len(gone)} of {len(all_models)} models would be removed at once, and stay loaded: {', '.join(sorted(gone))[:300]}"
    remedy = f"if that is intended, set MODELMARKET_REMOVALS_APPROVED_POSITION={max(unapproved.values())} and restart the controller"
    return Blocked("mass_removal", message, remedy)


def _already_applied(apps: Mapping[str, Config], version: Config, applied: AppliedConfig) -> bool:
    """Whether Ray has this configuration. A newer position alone is no change: it goes with the next one."""
    if {*apps, APPLIED_APP} != set(applied.apps):
        return False
    there = applied.apps
    return there[APPLIED_APP]["args"] == version["args"] and all(there[name]["args"] == app["args"] for name, app in apps.items())
