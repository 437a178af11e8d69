"""Decisions about a model and its versions: which change is allowed, and which facts it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from commands.models.compatibility import differences, neighbours
from commands.models.guards import active_model, no_version
from commands.models.semver import parse
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, forbidden, invalid
from events.facts.deployments import VersionUndeployed
from events.facts.fact import ModelId, ModelVersion, TenantId, UserId
from events.facts.models import (
    ModelRegistered,
    ModelRetired,
    ModelVersionAdded,
    ModelVersionApproved,
    ModelVersionReviewed,
    ModelVersionSubmitted,
    Registration,
    VersionContent,
)
from lifecycle.deployment import loaded
from lifecycle.model import ActiveModel, Approved, Draft, InReview, NoModel
from lifecycle.state import AggregateFact, Lifecycle

VERSIONS_MAX = 1000
"""Versions of one model: bounds its aggregate; a busy team releases for years before it meets it."""


@dataclass(frozen=True, slots=True)
class RegisterModel:
    model: ModelId
    tenant: TenantId
    owner: UserId
    registration: Registration


@dataclass(frozen=True, slots=True)
class AddVersion:
    """`parents_known` are the parents outside this model that were found to exist."""

    model_version: str
    artifact_bytes: int
    content: VersionContent
    parents_known: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SubmitVersion:
    model_version: str


@dataclass(frozen=True, slots=True)
class ReviewVersion:
    model_version: str
    review: Literal["business", "security"]
    verdict: Literal["approved", "rejected"]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class RetireModel:
    reason: str
    successor: str = ""


ModelCommand = RegisterModel | AddVersion | SubmitVersion | ReviewVersion | RetireModel
Decision = tuple[AggregateFact, ...] | Rejected


def decide(state: Lifecycle, command: ModelCommand, context: CommandContext) -> Decision:
    """The facts that follow from a command, or why not."""
    if isinstance(command, RegisterModel):
        return _register(state, command, context)
    model = active_model(state.model)
    if isinstance(model, Rejected):
        return model
    match command:
        case AddVersion():
            return _add_version(state, model, command, context)
        case SubmitVersion():
            return _submit(state, model, command, context)
        case ReviewVersion():
            return _review(state, model, command, context)
        case RetireModel():
            return _retire(state, model, command, context)
        case _:
            assert_never(command)


def _register(state: Lifecycle, c: RegisterModel, o: CommandContext) -> Decision:
    if not isinstance(state.model, NoModel):
        return conflict(
            "name_taken", f"{c.model} already exists or existed", "name", "choose another name; a retired name is never given again"
        )
    fact = ModelRegistered(
        **o.head(1),
        model=c.model,
        tenant=c.tenant,
        owner=c.owner,
        **c.registration.shared(Registration),
    )
    return (fact,)


def _add_version(state: Lifecycle, model: ActiveModel, c: AddVersion, o: CommandContext) -> Decision:
    number = parse(c.model_version)
    if number is None:
        return invalid(
            "version_not_semver", f"'{c.model_version}' is no SemVer 2.0", "version", "write MAJOR.MINOR.PATCH, for example 1.0.0"
        )
    for text, known in model.versions.items():
        # 1.0.0+a and 1.0.0+b have one precedence (SemVer clause 10): two such versions would have no order.
        if parse(text) == number:
            same = known.release.artifact == c.content.artifact
            message = f"version {text} exists with {'these' if same else 'other'} bytes and is never changed"
            return conflict("version_exists", message, "version", "nothing to do" if same else "add a new version number")
    if len(model.versions) >= VERSIONS_MAX:
        return conflict("too_many_versions", f"a model has at most {VERSIONS_MAX} versions", "version", "register a successor model")
    unknown = [p for p in c.content.lineage.parents if p not in model.versions and p not in c.parents_known]
    if unknown:
        return invalid(
            "parent_unknown",
            f"parents not found: {', '.join(unknown)}",
            "lineage.parents",
            "name existing versions, as 1.0.0 or model-…-v1.0.0",
        )
    below, above = neighbours(number, tuple(model.versions))
    for older, newer, other in ((below, None, below), (None, above, above)):
        if other is None:
            continue
        there = model.versions[other].release.technical
        found = differences(there, c.content.technical) if older else differences(c.content.technical, there)
        if found:
            relation = f"callers of {older}" if older else f"callers of {c.model_version}, once {newer} serves them,"
            message = f"{relation} would break: {'; '.join(found)}"
            return invalid("incompatible", message, "technical", f"keep inputs and outputs compatible, or release {number.major + 1}.0.0")
    fact = ModelVersionAdded(
        **o.head(state.version + 1),
        model=model.model,
        tenant=model.tenant,
        model_version=ModelVersion(c.model_version),
        artifact_bytes=c.artifact_bytes,
        **c.content.shared(VersionContent),
        by=o.by,
    )
    return (fact,)


def _submit(state: Lifecycle, model: ActiveModel, c: SubmitVersion, o: CommandContext) -> Decision:
    version = model.versions.get(c.model_version)
    match version:
        case None:
            return no_version(c.model_version)
        case Draft():
            return (
                ModelVersionSubmitted(**o.head(state.version + 1), model=model.model, model_version=ModelVersion(c.model_version), by=o.by),
            )
        case InReview():
            return conflict("already_submitted", f"version {c.model_version} is in review", "version", "wait for both reviews")
        case Approved():
            return conflict("already_approved", f"version {c.model_version} is approved", "version", "deploy it")
        case _:
            assert_never(version)


def _review(state: Lifecycle, model: ActiveModel, c: ReviewVersion, o: CommandContext) -> Decision:
    version = model.versions.get(c.model_version)
    if version is None:
        return no_version(c.model_version)
    if not isinstance(version, InReview):
        return conflict("not_in_review", f"version {c.model_version} is {version.kind}, not in review", "version", "submit it first")
    if o.by in (version.submitted_by, version.release.by):
        return forbidden("own_work", "nobody reviews what they added or submitted", "by", "ask another reviewer")
    mine, other = (version.business_by, version.security_by) if c.review == "business" else (version.security_by, version.business_by)
    if mine is not None:
        return conflict("already_reviewed", f"{mine} has given the {c.review} review", "review", "nothing to do")
    if other == o.by:
        return forbidden("same_reviewer", "business and security reviews are given by two different people", "by", "ask another reviewer")
    reviewed = ModelVersionReviewed(
        **o.head(state.version + 1),
        model=model.model,
        model_version=ModelVersion(c.model_version),
        review=c.review,
        verdict=c.verdict,
        by=o.by,
        comment=c.comment,
    )
    if c.verdict == "rejected" or other is None:
        return (reviewed,)
    business, security = (o.by, other) if c.review == "business" else (other, o.by)
    approved = ModelVersionApproved(
        **o.head(state.version + 2),
        model=model.model,
        model_version=ModelVersion(c.model_version),
        business_by=business,
        security_by=security,
    )
    return (reviewed, approved)


def _retire(state: Lifecycle, model: ActiveModel, c: RetireModel, o: CommandContext) -> Decision:
    if c.successor == model.model:
        return invalid("successor_is_itself", "a model cannot succeed itself", "successor", "name another model, or none")
    retirement = ModelRetired(**o.head(state.version + 1), model=model.model, reason=c.reason, successor=c.successor, by=o.by)
    unloads = (
        VersionUndeployed(
            **o.head(state.version + 2 + i), model=model.model, model_version=ModelVersion(v), reason="model retired", by=o.by
        )
        for i, v in enumerate(loaded(state.deployment))
    )
    return (retirement, *unloads)
