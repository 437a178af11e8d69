"""The status of a deployment: loaded versions that are ready or failed, and the facts by which gateways route. Folded from topic `deployments` alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from events.facts.deployments import (
    RolledBack,
    RolloutAdvanced,
    RolloutPromoted,
    RolloutStarted,
    RouteApplied,
    VersionDeployed,
    VersionFailed,
    VersionReady,
    VersionUndeployed,
)
from lifecycle import deployment as decided
from lifecycle.deployment import Deployment, DeploymentFact, NotDeployed, live_of, loaded
from lifecycle.misfit import Misfit

ObservedFact = VersionReady | VersionFailed | RouteApplied

GATEWAYS_KEPT = 64
"""Gateways kept in a status. Each start of one has a name of its own, so the ones that reported last are kept."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Asked for, and nothing seen of it yet."""

    kind: Literal["loading"] = "loading"


@dataclass(frozen=True, slots=True)
class Ready:
    replicas: int
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Failed:
    """It takes no calls."""

    code: str
    message: str
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Degraded:
    """The live version failed after it was ready: its old replicas go on taking calls."""

    replicas: int
    code: str
    message: str
    kind: Literal["degraded"] = "degraded"


Readiness = Loading | Ready | Failed | Degraded


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """`since` is the position of the fact that asked for it to be loaded."""

    since: int
    readiness: Readiness = Loading()

    @property
    def ready(self) -> bool:
        return isinstance(self.readiness, Ready | Degraded)


@dataclass(frozen=True, slots=True)
class AppliedRoute:
    """A gateway routes by every decided fact up to `position` (K19)."""

    position: int
    weights: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """`versions` has exactly the loaded ones; `unloaded` the position of the fact that took each other one away. `stand_in` took the
    calls before the live version changed, and takes them until that is ready."""

    deployment: Deployment = field(default_factory=NotDeployed)
    versions: Mapping[str, LoadedVersion] = field(default_factory=dict[str, LoadedVersion])
    unloaded: Mapping[str, int] = field(default_factory=dict[str, int])
    stand_in: str = ""
    applied: Mapping[str, AppliedRoute] = field(default_factory=dict[str, AppliedRoute])

    def serving(self) -> str:
        """The version that takes the calls that no candidate takes; empty when none is ready."""
        return next((v for v in (live_of(self.deployment), self.stand_in) if v and self.versions[v].ready), "")


def evolve(status: DeploymentStatus, fact: DeploymentFact | ObservedFact, position: int) -> DeploymentStatus | Misfit:
    """The status after a fact. `position` is that of a decided fact in its store; observed ones carry the position they saw."""
    match fact:
        case VersionDeployed() | RolloutStarted() | RolloutAdvanced() | RolloutPromoted() | RolledBack() | VersionUndeployed():
            return _decided(status, fact, position)
        case VersionReady() | VersionFailed():
            return _seen(status, fact)
        case RouteApplied():
            others = [(gateway, route) for gateway, route in status.applied.items() if gateway != fact.gateway]
            kept = dict(others[-(GATEWAYS_KEPT - 1) :])
            return replace(status, applied={**kept, fact.gateway: AppliedRoute(fact.position, fact.weights)})
        case _:
            assert_never(fact)


def _decided(status: DeploymentStatus, fact: DeploymentFact, position: int) -> DeploymentStatus | Misfit:
    deployment = decided.evolve(status.deployment, fact)
    if isinstance(deployment, Misfit):
        return deployment
    there = loaded(deployment)
    stand_in = status.stand_in
    if isinstance(fact, RolloutPromoted | RolledBack):
        stand_in = status.serving() or live_of(status.deployment)
    return replace(
        status,
        deployment=deployment,
        versions={v: status.versions.get(v) or LoadedVersion(position) for v in there},
        unloaded={v: at for v, at in status.unloaded.items() if v not in there} | {v: position for v in status.versions if v not in there},
        stand_in=stand_in if stand_in in there and stand_in != live_of(deployment) else "",
    )


def _seen(status: DeploymentStatus, fact: VersionReady | VersionFailed) -> DeploymentStatus | Misfit:
    version = status.versions.get(fact.model_version)
    if version is None:
        return Misfit(f"{type(fact).__name__} of version {fact.model_version} of {fact.model}, which is not loaded")
    if fact.position < version.since:
        return Misfit(f"{type(fact).__name__} of an earlier deployment of version {fact.model_version} of {fact.model}")
    after = replace(version, readiness=_readiness(version.readiness, fact, fact.model_version == live_of(status.deployment)))
    return replace(status, versions={**status.versions, fact.model_version: after})


def _readiness(was: Readiness, fact: VersionReady | VersionFailed, live: bool) -> Readiness:
    """What is live stays live: a failed update leaves its old replicas serving."""
    match fact:
        case VersionReady():
            return Ready(fact.replicas)
        case VersionFailed():
            if live and isinstance(was, Ready | Degraded):
                return Degraded(was.replicas, fact.error_code, fact.message)
            return Failed(fact.error_code, fact.message)
        case _:
            assert_never(fact)
