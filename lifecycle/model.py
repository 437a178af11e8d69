"""A model and its versions: registered, in review, approved, retired. Folded from topic `models` alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from events.facts.fact import ModelId, TenantId, Timestamp, UserId
from events.facts.models import (
    ModelRegistered,
    ModelRetired,
    ModelVersionAdded,
    ModelVersionApproved,
    ModelVersionReviewed,
    ModelVersionSubmitted,
    Technical,
)
from lifecycle.misfit import Misfit

VersionFact = ModelVersionAdded | ModelVersionSubmitted | ModelVersionReviewed | ModelVersionApproved
ModelFact = ModelRegistered | VersionFact | ModelRetired


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
class NoModel:
    """The name is free."""

    kind: Literal["unknown"] = "unknown"


@dataclass(frozen=True, slots=True)
class ActiveModel:
    model: ModelId
    tenant: TenantId
    owner: UserId
    registered_at: Timestamp
    versions: Mapping[str, VersionState] = field(default_factory=dict[str, VersionState])
    kind: Literal["active"] = "active"


@dataclass(frozen=True, slots=True)
class RetiredModel:
    """No more calls, for ever; the name stays taken. `position`: of the fact that retired it."""

    model: ModelId
    tenant: TenantId
    owner: UserId
    registered_at: Timestamp
    versions: Mapping[str, VersionState]
    successor: str
    reason: str
    position: int
    kind: Literal["retired"] = "retired"


Model = NoModel | ActiveModel | RetiredModel


def evolve(model: Model, fact: ModelFact, position: int) -> Model | Misfit:
    """The model after a fact. `position` is the fact's position in its store; 0 while it is being decided, before it has one."""
    match model:
        case NoModel():
            if isinstance(fact, ModelRegistered):
                return ActiveModel(fact.model, fact.tenant, fact.owner, fact.occurred_at)
            return Misfit(f"{type(fact).__name__} of {fact.model}, which no ModelRegistered came before")
        case ActiveModel():
            return _evolve_active(model, fact, position)
        case RetiredModel():
            return Misfit(f"{type(fact).__name__} of {model.model}, which is retired")
        case _:
            assert_never(model)


def _evolve_active(model: ActiveModel, fact: ModelFact, position: int) -> Model | Misfit:
    match fact:
        case ModelRegistered():
            return Misfit(f"{model.model} is registered a second time")
        case ModelVersionAdded():
            if fact.model_version in model.versions:
                return Misfit(f"version {fact.model_version} of {model.model} is added a second time")
            return _with(model, fact.model_version, Draft(Release(fact.technical, fact.artifact, fact.by)))
        case ModelVersionSubmitted() | ModelVersionReviewed() | ModelVersionApproved():
            version = model.versions.get(fact.model_version)
            after = None if version is None else _evolve_version(version, fact)
            if after is None:
                found = "not there" if version is None else version.kind
                return Misfit(f"{type(fact).__name__} of version {fact.model_version} of {model.model}, which is {found}")
            return _with(model, fact.model_version, after)
        case ModelRetired():
            m = model
            return RetiredModel(m.model, m.tenant, m.owner, m.registered_at, m.versions, fact.successor, fact.reason, position)
        case _:
            assert_never(fact)


def _evolve_version(
    version: VersionState, fact: ModelVersionSubmitted | ModelVersionReviewed | ModelVersionApproved
) -> VersionState | None:
    """The version after a step of its review; None for a step that it is not at."""
    match version:
        case Draft():
            return InReview(version.release, fact.by) if isinstance(fact, ModelVersionSubmitted) else None
        case InReview():
            if isinstance(fact, ModelVersionApproved):
                return Approved(version.release, fact.business_by, fact.security_by)
            return _reviewed(version, fact) if isinstance(fact, ModelVersionReviewed) else None
        case Approved():
            return None
        case _:
            assert_never(version)


def _reviewed(version: InReview, fact: ModelVersionReviewed) -> VersionState:
    if fact.verdict == "rejected":
        return Draft(version.release)
    match fact.review:
        case "business":
            return replace(version, business_by=fact.by)
        case "security":
            return replace(version, security_by=fact.by)
        case _:
            assert_never(fact.review)


def _with(model: ActiveModel, version: str, state: VersionState) -> ActiveModel:
    return ActiveModel(model.model, model.tenant, model.owner, model.registered_at, {**model.versions, version: state})
