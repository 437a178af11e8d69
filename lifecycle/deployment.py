"""What was decided about a model's traffic: the live version, the candidate, others that are loaded. Folded from topic `deployments` alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from events.facts.deployments import (
    RolledBack,
    RolloutAdvanced,
    RolloutPromoted,
    RolloutStarted,
    ServiceSpec,
    VersionDeployed,
    VersionUndeployed,
)
from lifecycle.misfit import Misfit

DeploymentFact = VersionDeployed | RolloutStarted | RolloutAdvanced | RolloutPromoted | RolledBack | VersionUndeployed


@dataclass(frozen=True, slots=True)
class NotDeployed:
    kind: Literal["not_deployed"] = "not_deployed"


@dataclass(frozen=True, slots=True)
class Serving:
    """`live` takes every call; `standby` versions are loaded and take none. `before` was live until `live` was promoted; empty when
    nothing was, or when `live` is itself the result of a rollback."""

    live: str
    standby: Mapping[str, ServiceSpec]
    spec: ServiceSpec
    before: str = ""
    kind: Literal["serving"] = "serving"


@dataclass(frozen=True, slots=True)
class Shifting:
    """`candidate` takes `weight_percent` of the calls, `live` the rest."""

    live: str
    candidate: str
    weight_percent: int
    standby: Mapping[str, ServiceSpec]
    spec: ServiceSpec
    candidate_spec: ServiceSpec
    kind: Literal["shifting"] = "shifting"


@dataclass(frozen=True, slots=True)
class Unloading:
    """The live version was unloaded, as a retirement does; `standby` is what is still loaded, and takes no calls."""

    standby: Mapping[str, ServiceSpec] = field(default_factory=dict[str, ServiceSpec])
    kind: Literal["unloading"] = "unloading"


Deployment = NotDeployed | Serving | Shifting | Unloading


def specs(deployment: Deployment) -> Mapping[str, ServiceSpec]:
    """Every loaded version and how it is run: the live one first, then the candidate."""
    match deployment:
        case NotDeployed():
            return {}
        case Serving():
            return {deployment.live: deployment.spec, **deployment.standby}
        case Shifting():
            return {deployment.live: deployment.spec, deployment.candidate: deployment.candidate_spec, **deployment.standby}
        case Unloading():
            return deployment.standby
        case _:
            assert_never(deployment)


def loaded(deployment: Deployment) -> tuple[str, ...]:
    """Every version that takes memory somewhere."""
    return tuple(specs(deployment))


def live_of(deployment: Deployment) -> str:
    """The version that is to take the calls; empty when none is."""
    return deployment.live if isinstance(deployment, Serving | Shifting) else ""


def evolve(was: Deployment, fact: DeploymentFact) -> Deployment | Misfit:
    """The deployment after a fact."""
    match fact:
        case VersionDeployed():
            return Serving(fact.model_version, {}, fact.spec) if isinstance(was, NotDeployed) else _misfit(was, fact)
        case RolloutStarted():
            if not isinstance(was, Serving) or was.live == fact.to_version:
                return _misfit(was, fact)
            return Shifting(was.live, fact.to_version, fact.weight_percent, _without(was.standby, fact.to_version), was.spec, fact.spec)
        case RolloutAdvanced():
            if not isinstance(was, Shifting) or was.candidate != fact.to_version:
                return _misfit(was, fact)
            return replace(was, weight_percent=fact.weight_percent)
        case RolloutPromoted():
            if not isinstance(was, Shifting) or was.candidate != fact.to_version:
                return _misfit(was, fact)
            return Serving(was.candidate, {**was.standby, was.live: was.spec}, was.candidate_spec, before=was.live)
        case RolledBack():
            return _rolled_back(was, fact.to_version) if isinstance(was, Serving | Shifting) else _misfit(was, fact)
        case VersionUndeployed():
            return _unloaded(was, fact.model_version) if fact.model_version in specs(was) else _misfit(was, fact)
        case _:
            assert_never(fact)


def _rolled_back(was: Serving | Shifting, to: str) -> Serving:
    """Everything that was loaded stays loaded; a version that was not takes the service spec of the one it replaces."""
    there = specs(was)
    return Serving(to, _without(there, to), there.get(to, was.spec))


def _unloaded(was: Deployment, version: str) -> Deployment:
    match was:
        case NotDeployed():
            return was
        case Serving():
            standby = _without(was.standby, version)
            if version != was.live:
                return replace(was, standby=standby, before="" if was.before == version else was.before)
            if was.before:
                return Serving(was.before, _without(standby, was.before), was.standby[was.before])
            return Unloading(standby) if standby else NotDeployed()
        case Shifting():
            if version == was.candidate:
                return Serving(was.live, was.standby, was.spec)
            if version == was.live:
                return Unloading({was.candidate: was.candidate_spec, **was.standby})
            return replace(was, standby=_without(was.standby, version))
        case Unloading():
            standby = _without(was.standby, version)
            return Unloading(standby) if standby else NotDeployed()
        case _:
            assert_never(was)


def _without(standby: Mapping[str, ServiceSpec], version: str) -> Mapping[str, ServiceSpec]:
    return {v: spec for v, spec in standby.items() if v != version}


def _misfit(was: Deployment, fact: DeploymentFact) -> Misfit:
    return Misfit(f"{type(fact).__name__} of {fact.model}, whose deployment is {was.kind} with {', '.join(specs(was)) or 'nothing'} loaded")
