"""What may be done with a model's traffic: deploy, shift, promote, roll back, unload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from commands.models.decide import Decision
from commands.models.guards import active_model, no_version
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, invalid
from events.facts.deployments import (
    RolledBack,
    RolloutAdvanced,
    RolloutPromoted,
    RolloutStarted,
    ServiceSpec,
    VersionDeployed,
    VersionUndeployed,
)
from events.facts.fact import ModelVersion
from lifecycle.deployment import NotDeployed, Serving, Shifting, Unloading, loaded
from lifecycle.model import ActiveModel, Approved
from lifecycle.state import Lifecycle

LOADED_MAX = 4
"""Versions of one model in memory at once: live, candidate, and two to go back to."""


@dataclass(frozen=True, slots=True)
class DeployVersion:
    model_version: str
    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class StartRollout:
    """`spec` None: like the live version."""

    model_version: str
    weight_percent: int
    spec: ServiceSpec | None = None


@dataclass(frozen=True, slots=True)
class AdvanceRollout:
    weight_percent: int


@dataclass(frozen=True, slots=True)
class PromoteRollout:
    pass


@dataclass(frozen=True, slots=True)
class RollBack:
    """`to_version` empty: the version that was live before the rollout, or before the last promotion."""

    reason: str
    to_version: str = ""


@dataclass(frozen=True, slots=True)
class UndeployVersion:
    model_version: str
    reason: str


DeploymentCommand = DeployVersion | StartRollout | AdvanceRollout | PromoteRollout | RollBack | UndeployVersion


def decide(state: Lifecycle, command: DeploymentCommand, context: CommandContext) -> Decision:
    """The facts that follow from a command, or why not."""
    model = active_model(state.model)
    if isinstance(model, Rejected):
        return model
    match command:
        case DeployVersion():
            return _deploy(state, model, command, context)
        case StartRollout():
            return _start(state, model, command, context)
        case AdvanceRollout():
            return _advance(state, model, command, context)
        case PromoteRollout():
            return _promote(state, model, context)
        case RollBack():
            return _roll_back(state, model, command, context)
        case UndeployVersion():
            return _undeploy(state, model, command, context)
        case _:
            assert_never(command)


def _approved(model: ActiveModel, version: str) -> Approved | Rejected:
    found = model.versions.get(version)
    if found is None:
        return no_version(version)
    if not isinstance(found, Approved):
        return conflict("not_approved", f"version {version} is {found.kind}", "version", "get both reviews first")
    return found


def _not_shifting() -> Rejected:
    return conflict("no_rollout", "no rollout is under way", "model", "start one")


def _weight(percent: int) -> Rejected | None:
    if 1 <= percent <= 99:
        return None
    return invalid("weight_out_of_range", f"{percent} is not within 1…99", "weight_percent", "promote for 100, roll back for 0")


def _deploy(state: Lifecycle, model: ActiveModel, c: DeployVersion, o: CommandContext) -> Decision:
    approved = _approved(model, c.model_version)
    if isinstance(approved, Rejected):
        return approved
    if not isinstance(state.deployment, NotDeployed):
        return conflict(
            "already_deployed", f"{model.model} serves {loaded(state.deployment)[0]}", "model", "start a rollout of the new version"
        )
    fact = VersionDeployed(
        **o.head(state.version + 1),
        model=model.model,
        tenant=model.tenant,
        model_version=ModelVersion(c.model_version),
        artifact=approved.release.artifact,
        spec=c.spec,
        by=o.by,
    )
    return (fact,)


def _start(state: Lifecycle, model: ActiveModel, c: StartRollout, o: CommandContext) -> Decision:
    bad = _weight(c.weight_percent)
    if bad is not None:
        return bad
    approved = _approved(model, c.model_version)
    if isinstance(approved, Rejected):
        return approved
    was = state.deployment
    match was:
        case NotDeployed() | Unloading():
            return conflict("not_deployed", f"{model.model} serves nothing yet", "model", "deploy the first version")
        case Shifting():
            message = f"{was.candidate} is being rolled out at {was.weight_percent} %"
            return conflict("rollout_under_way", message, "model", "promote it or roll it back first")
        case Serving():
            if was.live == c.model_version:
                return conflict("already_live", f"version {c.model_version} takes every call", "version", "nothing to do")
            if c.model_version not in was.standby and len(loaded(was)) >= LOADED_MAX:
                message = f"{len(loaded(was))} versions are loaded, at most {LOADED_MAX} may be"
                return conflict("too_many_loaded", message, "version", f"undeploy one of {', '.join(was.standby)}")
            fact = RolloutStarted(
                **o.head(state.version + 1),
                model=model.model,
                tenant=model.tenant,
                from_version=ModelVersion(was.live),
                to_version=ModelVersion(c.model_version),
                artifact=approved.release.artifact,
                weight_percent=c.weight_percent,
                spec=c.spec or was.standby.get(c.model_version, was.spec),
                by=o.by,
            )
            return (fact,)
        case _:
            assert_never(was)


def _advance(state: Lifecycle, model: ActiveModel, c: AdvanceRollout, o: CommandContext) -> Decision:
    bad = _weight(c.weight_percent)
    if bad is not None:
        return bad
    was = state.deployment
    if not isinstance(was, Shifting):
        return _not_shifting()
    if was.weight_percent == c.weight_percent:
        return conflict("weight_unchanged", f"the weight is {c.weight_percent} % already", "weight_percent", "nothing to do")
    head = o.head(state.version + 1)
    return (RolloutAdvanced(**head, model=model.model, to_version=ModelVersion(was.candidate), weight_percent=c.weight_percent, by=o.by),)


def _promote(state: Lifecycle, model: ActiveModel, o: CommandContext) -> Decision:
    was = state.deployment
    if not isinstance(was, Shifting):
        return _not_shifting()
    head = o.head(state.version + 1)
    return (
        RolloutPromoted(**head, model=model.model, from_version=ModelVersion(was.live), to_version=ModelVersion(was.candidate), by=o.by),
    )


def _roll_back(state: Lifecycle, model: ActiveModel, c: RollBack, o: CommandContext) -> Decision:
    was = state.deployment
    if isinstance(was, NotDeployed | Unloading):
        return conflict("not_deployed", f"{model.model} serves nothing yet", "model", "deploy a version")
    # A second request, by another person or after a lost answer, changes nothing: it must not return to the version that was left.
    to = c.to_version or (was.live if isinstance(was, Shifting) else was.before)
    if not to:
        return conflict("nothing_to_go_back_to", "no other version was live before", "to_version", "name an approved version")
    approved = _approved(model, to)
    if isinstance(approved, Rejected):
        return approved
    leaving = was.candidate if isinstance(was, Shifting) else was.live
    if to == leaving:
        return conflict("already_live", f"version {to} is the one that takes calls now", "to_version", "name another approved version")
    if to not in loaded(was) and len(loaded(was)) >= LOADED_MAX + 1:
        # One more than a rollout may use: a rollback must not fail because too many versions are loaded.
        return conflict(
            "too_many_loaded", f"{len(loaded(was))} versions are loaded", "to_version", f"undeploy one of {', '.join(was.standby)}"
        )
    head = o.head(state.version + 1)
    return (
        RolledBack(**head, model=model.model, from_version=ModelVersion(leaving), to_version=ModelVersion(to), reason=c.reason, by=o.by),
    )


def _undeploy(state: Lifecycle, model: ActiveModel, c: UndeployVersion, o: CommandContext) -> Decision:
    was = state.deployment
    if isinstance(was, NotDeployed) or c.model_version not in loaded(was):
        return conflict("not_loaded", f"version {c.model_version} is not loaded", "version", "nothing to do")
    if c.model_version not in was.standby:
        return conflict(
            "takes_calls", f"version {c.model_version} takes calls", "version", "shift its traffic away first, or retire the model"
        )
    head = o.head(state.version + 1)
    return (VersionUndeployed(**head, model=model.model, model_version=ModelVersion(c.model_version), reason=c.reason, by=o.by),)
