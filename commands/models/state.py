"""What is known of one model: its versions and what of them is loaded. One aggregate, so that a rollout and a retirement cannot both win."""

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
from events.facts.fact import ModelId, TenantId, UserId
from events.facts.models import (
    ModelRegistered,
    ModelRetired,
    ModelVersionAdded,
    ModelVersionApproved,
    ModelVersionReviewed,
    ModelVersionSubmitted,
    Technical,
)

LifecycleFact = ModelRegistered | ModelVersionAdded | ModelVersionSubmitted | ModelVersionReviewed | ModelVersionApproved | ModelRetired
DeploymentFact = VersionDeployed | RolloutStarted | RolloutAdvanced | RolloutPromoted | RolledBack | VersionUndeployed
ModelFact = LifecycleFact | DeploymentFact


@dataclass(frozen=True, slots=True)
class Release:
    """What of a version never changes."""

    technical: Technical
    artifact: str
    by: UserId


@dataclass(frozen=True, slots=True)
class Draft:
    release: Release
    kind: Literal["draft"] = "draft"


@dataclass(frozen=True, slots=True)
class InReview:
    """Reviewers that have approved so far are named; a rejection ends the review."""

    release: Release
    submitted_by: UserId
    business_by: UserId | None = None
    security_by: UserId | None = None
    kind: Literal["pending_review"] = "pending_review"


@dataclass(frozen=True, slots=True)
class Approved:
    release: Release
    business_by: UserId
    security_by: UserId
    kind: Literal["approved"] = "approved"


VersionState = Draft | InReview | Approved


@dataclass(frozen=True, slots=True)
class NotDeployed:
    kind: Literal["not_deployed"] = "not_deployed"


@dataclass(frozen=True, slots=True)
class Serving:
    """`live` takes every call; `standby` versions are loaded and take none. `before` was live until `live` was promoted; empty when
    nothing was, or when `live` is itself where somebody went back to."""

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


Deployment = NotDeployed | Serving | Shifting


@dataclass(frozen=True, slots=True)
class NoModel:
    """The name is free."""

    version: int = 0
    kind: Literal["unknown"] = "unknown"


@dataclass(frozen=True, slots=True)
class ActiveModel:
    version: int
    model: ModelId
    tenant: TenantId
    owner: UserId
    versions: Mapping[str, VersionState] = field(default_factory=dict[str, VersionState])
    deployment: Deployment = NotDeployed()
    kind: Literal["active"] = "active"


@dataclass(frozen=True, slots=True)
class RetiredModel:
    """No more calls, for ever; the name stays taken."""

    version: int
    model: ModelId
    tenant: TenantId
    versions: Mapping[str, VersionState]
    successor: str
    reason: str
    kind: Literal["retired"] = "retired"


ModelState = NoModel | ActiveModel | RetiredModel


def loaded(deployment: Deployment) -> tuple[str, ...]:
    """Every version that takes memory somewhere."""
    match deployment:
        case NotDeployed():
            return ()
        case Serving():
            return (deployment.live, *deployment.standby)
        case Shifting():
            return (deployment.live, deployment.candidate, *deployment.standby)
        case _:
            assert_never(deployment)


def evolve(state: ModelState, fact: ModelFact) -> ModelState:
    """The state after a fact. Facts were decided on this very state, so a fact that does not fit is our mistake."""
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    match state:
        case NoModel():
            assert isinstance(fact, ModelRegistered)
            return ActiveModel(fact.version, fact.model, fact.tenant, fact.owner)
        case ActiveModel():
            return _evolve_active(replace(state, version=fact.version), fact)
        case RetiredModel():
            assert isinstance(fact, VersionUndeployed)
            return replace(state, version=fact.version)
        case _:
            assert_never(state)


def _evolve_active(state: ActiveModel, fact: ModelFact) -> ModelState:
    match fact:
        case ModelRegistered():
            raise AssertionError("a model is registered once")
        case ModelVersionAdded():
            return _with(state, fact.model_version, Draft(Release(fact.technical, fact.artifact, fact.by)))
        case ModelVersionSubmitted():
            return _with(state, fact.model_version, InReview(state.versions[fact.model_version].release, fact.by))
        case ModelVersionReviewed():
            return _with(state, fact.model_version, _reviewed(state.versions[fact.model_version], fact))
        case ModelVersionApproved():
            release = state.versions[fact.model_version].release
            return _with(state, fact.model_version, Approved(release, fact.business_by, fact.security_by))
        case ModelRetired():
            return RetiredModel(state.version, state.model, state.tenant, state.versions, fact.successor, fact.reason)
        case VersionDeployed() | RolloutStarted() | RolloutAdvanced() | RolloutPromoted() | RolledBack() | VersionUndeployed():
            return replace(state, deployment=_evolve_deployment(state.deployment, fact))
        case _:
            assert_never(fact)


def _with(state: ActiveModel, version: str, version_state: VersionState) -> ActiveModel:
    return replace(state, versions={**state.versions, version: version_state})


def _reviewed(version: VersionState, fact: ModelVersionReviewed) -> VersionState:
    assert isinstance(version, InReview)
    if fact.verdict == "rejected":
        return Draft(version.release)
    if fact.review == "business":
        return replace(version, business_by=fact.by)
    return replace(version, security_by=fact.by)


def _evolve_deployment(was: Deployment, fact: DeploymentFact) -> Deployment:
    match fact:
        case VersionDeployed():
            assert isinstance(was, NotDeployed)
            return Serving(fact.model_version, {}, fact.spec)
        case RolloutStarted():
            assert isinstance(was, Serving)
            standby = {v: s for v, s in was.standby.items() if v != fact.to_version}
            return Shifting(was.live, fact.to_version, fact.weight_percent, standby, was.spec, fact.spec)
        case RolloutAdvanced():
            assert isinstance(was, Shifting)
            return replace(was, weight_percent=fact.weight_percent)
        case RolloutPromoted():
            assert isinstance(was, Shifting)
            return Serving(was.candidate, {**was.standby, was.live: was.spec}, was.candidate_spec, before=was.live)
        case RolledBack():
            return _rolled_back(was, fact.to_version)
        case VersionUndeployed():
            assert isinstance(was, Serving | Shifting)
            standby = {v: s for v, s in was.standby.items() if v != fact.model_version}
            if isinstance(was, Shifting):
                return replace(was, standby=standby)
            return replace(was, standby=standby, before="" if was.before == fact.model_version else was.before)
        case _:
            assert_never(fact)


def _rolled_back(was: Deployment, to: str) -> Deployment:
    """Everything that was loaded stays loaded; a version that was not takes the service spec of the one it replaces."""
    assert isinstance(was, Serving | Shifting)
    specs = {**was.standby, was.live: was.spec}
    if isinstance(was, Shifting):
        specs[was.candidate] = was.candidate_spec
    spec = specs.pop(to, was.spec)
    return Serving(to, specs, spec)
