"""What the catalog shows of a model and of its deployment: rendered from the one fold of the lifecycle, with what the facts say besides.

The document is all that is kept between two facts, so the fold's state is read back from it.
"""

from __future__ import annotations

import logging
from typing import Any, assert_never

from events.facts.deployments import (
    RolledBack,
    RolloutAdvanced,
    RolloutPromoted,
    RolloutStarted,
    RouteApplied,
    ServiceSpec,
    VersionDeployed,
    VersionFailed,
    VersionReady,
    VersionUndeployed,
)
from events.facts.models import (
    ModelRegistered,
    ModelRetired,
    ModelVersionAdded,
    ModelVersionApproved,
    ModelVersionReviewed,
    ModelVersionSubmitted,
    Technical,
)
from events.schema.trusted import trusted
from lifecycle import model as models
from lifecycle import status as statuses
from lifecycle.deployment import Deployment, DeploymentFact, NotDeployed, Serving, Shifting, Unloading, live_of, specs
from lifecycle.misfit import Misfit
from lifecycle.model import ActiveModel, Approved, Draft, InReview, Model, ModelFact, NoModel, Release, RetiredModel, VersionState
from lifecycle.route import deployed_route
from lifecycle.status import AppliedRoute, Degraded, DeploymentStatus, Failed, LoadedVersion, Loading, ObservedFact, Readiness, Ready
from projections.catalog.document import Body, Document, pick, put

logger = logging.getLogger(__name__)

UNDEPLOYED = "undeployed"


def model_after(document: Document, fact: ModelFact, body: Body, position: int) -> Document:
    """A model's document after a fact of topic `models`; the same one for a fact that does not follow (K26)."""
    model = models.evolve(model_in(document), fact, position)
    if isinstance(model, Misfit):
        logger.warning("the fact at position %d does not follow from those before it and changes nothing: %s", position, model.reason)
        return document
    return _show_model(_describe_model(document, fact, body, position), model)


def deployment_after(document: Document, fact: DeploymentFact | ObservedFact, body: Body, position: int) -> Document:
    """A deployment's document after a fact of topic `deployments`; the same one for a fact that does not follow (K26)."""
    before = status_in(document)
    status = statuses.evolve(before, fact, position)
    if isinstance(status, Misfit):
        logger.warning("the fact at position %d does not follow from those before it and changes nothing: %s", position, status.reason)
        return document
    return _show_status(_describe_deployment(document, fact, body, frozenset(before.versions)), status)


# --- the model half


def model_in(document: Document) -> Model:
    """The state that this document shows."""
    if "tenant" not in document:
        return NoModel()
    versions = {version: _version_in(part) for version, part in document["versions"].items()}
    owned = (document["model"], document["tenant"], document["owner"], document["registered_at"], versions)
    retired = document["retired"]
    return RetiredModel(*owned, retired["successor"], retired["reason"], retired["position"]) if retired else ActiveModel(*owned)


def _version_in(part: Document) -> VersionState:
    release = Release(trusted(Technical, part["technical"]), part["artifact"], part["by"])
    match part["status"]:
        case "draft":
            return Draft(release)
        case "pending_review":
            business, security = (part["reviews"].get(review, {}).get("by") for review in ("business", "security"))
            return InReview(release, part["submitted_by"], business, security)
        case "approved":
            return Approved(release, part["business_by"], part["security_by"])
        case other:
            raise AssertionError(f"no version is {other}")


def _show_model(document: Document, model: Model) -> Document:
    if isinstance(model, NoModel):
        return document
    return {**document, "versions": {v: {**document["versions"][v], "status": state.kind} for v, state in model.versions.items()}}


def _describe_model(d: Document, fact: ModelFact, b: Body, position: int) -> Document:
    """What a fact says that no rule asks for: texts, people, instants."""
    at = b["occurred_at"]
    match fact:
        case ModelRegistered():
            names = ("model", "tenant", "domain", "team", "name", "scenario", "task", "owner", "description", "tags", "compliance")
            return {**pick(b, *names), "registered_at": at, "versions": {}, "retired": None}
        case ModelVersionAdded():
            more = pick(b, "model_version", "technical", "artifact", "artifact_bytes", "release_notes", "lineage", "by")
            return put(d, "versions", fact.model_version, **more, added_at=at, reviews={})
        case ModelVersionSubmitted():
            return put(d, "versions", fact.model_version, submitted_at=at, submitted_by=fact.by, reviews={})
        case ModelVersionReviewed():
            return put(d, "versions", fact.model_version, "reviews", **{fact.review: {**pick(b, "verdict", "by", "comment"), "at": at}})
        case ModelVersionApproved():
            return put(d, "versions", fact.model_version, approved_at=at, **pick(b, "business_by", "security_by"))
        case ModelRetired():
            return put(d, retired={**pick(b, "reason", "successor", "by"), "at": at, "position": position})
        case _:
            assert_never(fact)


# --- the deployment half


def status_in(document: Document) -> DeploymentStatus:
    """The state that this document shows."""
    versions: dict[str, Document] = document.get("versions", {})
    loaded = {v: part for v, part in versions.items() if part["status"] != UNDEPLOYED}
    return DeploymentStatus(
        _deployment_in(document, {v: trusted(ServiceSpec, part["spec"]) for v, part in loaded.items()}),
        {v: LoadedVersion(part["position"], _readiness_in(part)) for v, part in loaded.items()},
        {v: part["position"] for v, part in versions.items() if v not in loaded},
        document.get("stand_in", ""),
        {gateway: AppliedRoute(part["position"], part["weights"]) for gateway, part in document.get("routes", {}).items()},
    )


def _deployment_in(document: Document, there: dict[str, ServiceSpec]) -> Deployment:
    live, candidate = document.get("live", ""), document.get("candidate", "")
    standby = {v: spec for v, spec in there.items() if v not in (live, candidate)}
    if candidate:
        return Shifting(live, candidate, document["weight_percent"], standby, there[live], there[candidate])
    if live:
        return Serving(live, standby, there[live], document["before"])
    return Unloading(standby) if standby else NotDeployed()


def _readiness_in(part: Document) -> Readiness:
    if part["status"] == "loading":
        return Loading()
    if part["status"] == "ready":
        return Ready(part["replicas"])
    code, message = part["error_code"], part["error"].removeprefix(f"{part['error_code']}: ")
    return Degraded(part["replicas"], code, message) if part["ready"] else Failed(code, message)


def _show_status(document: Document, status: DeploymentStatus) -> Document:
    """`live` is to take the calls; `serving` and `weights` say who takes them now."""
    described, deployment = document.get("versions", {}), status.deployment
    run_as = specs(deployment)
    shown = {v: {**described.get(v, {}), **_show_version(version, run_as[v])} for v, version in status.versions.items()}
    gone = {
        v: {**described.get(v, {}), "status": UNDEPLOYED, "ready": False, "replicas": 0, "position": at}
        for v, at in status.unloaded.items()
    }
    return {
        **document,
        "versions": shown | gone,
        "live": live_of(deployment),
        "candidate": deployment.candidate if isinstance(deployment, Shifting) else "",
        "weight_percent": deployment.weight_percent if isinstance(deployment, Shifting) else 0,
        "before": deployment.before if isinstance(deployment, Serving) else "",
        "stand_in": status.stand_in,
        "serving": status.serving(),
        "loading": sorted(v for v, version in status.versions.items() if isinstance(version.readiness, Loading)),
        "weights": dict(deployed_route(status).weights),
        "routes": {g: {**document["routes"][g], "position": r.position, "weights": dict(r.weights)} for g, r in status.applied.items()},
    }


def _show_version(version: LoadedVersion, spec: ServiceSpec) -> Document:
    common: dict[str, Any] = {"spec": spec.model_dump(), "position": version.since, "ready": version.ready}
    seen = version.readiness
    match seen:
        case Loading():
            return {**common, "status": "loading", "replicas": 0, "error": "", "error_code": ""}
        case Ready():
            return {**common, "status": "ready", "replicas": seen.replicas, "error": "", "error_code": ""}
        case Failed() | Degraded():
            replicas = seen.replicas if isinstance(seen, Degraded) else 0
            return {**common, "status": "failed", "replicas": replicas, "error": f"{seen.code}: {seen.message}", "error_code": seen.code}
        case _:
            assert_never(seen)


def _describe_deployment(d: Document, fact: DeploymentFact | ObservedFact, b: Body, loaded: frozenset[str]) -> Document:
    """What a fact says that no rule asks for: who asked for a version, when, and why it went. `loaded` is what was so before it."""
    at = b["occurred_at"]
    match fact:
        case VersionDeployed():
            d = put(d, "versions", fact.model_version, **pick(b, "artifact", "by"), requested_at=at)
            return put(d, model=fact.model, tenant=fact.tenant)
        case RolloutStarted():
            return put(d, "versions", fact.to_version, **pick(b, "artifact", "by"), requested_at=at)
        case RolledBack():
            d = put(d, rolled_back={**pick(b, "from_version", "to_version", "reason", "by"), "at": at})
            return d if fact.to_version in loaded else put(d, "versions", fact.to_version, by=fact.by, requested_at=at)
        case VersionUndeployed():
            return put(d, "versions", fact.model_version, undeployed_at=at, reason=fact.reason)
        case VersionReady():
            return put(d, "versions", fact.model_version, ready_at=at, load_us=fact.load_us)
        case VersionFailed():
            return put(d, "versions", fact.model_version, failed_at=at)
        case RouteApplied():
            return put(d, "routes", fact.gateway, epoch=fact.epoch, at=at)
        case RolloutAdvanced() | RolloutPromoted():
            return d
        case _:
            assert_never(fact)
