"""What a command is decided on: a model, its versions and its deployment as one aggregate, so that a rollout and a retirement cannot both win."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import assert_never

from events.facts.deployments import RolledBack, RolloutAdvanced, RolloutPromoted, RolloutStarted, VersionDeployed, VersionUndeployed
from events.facts.models import (
    ModelRegistered,
    ModelRetired,
    ModelVersionAdded,
    ModelVersionApproved,
    ModelVersionReviewed,
    ModelVersionSubmitted,
)
from lifecycle import deployment as deployments
from lifecycle import model as models
from lifecycle.deployment import Deployment, DeploymentFact, NotDeployed
from lifecycle.misfit import Misfit
from lifecycle.model import Model, ModelFact, NoModel

AggregateFact = ModelFact | DeploymentFact


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """`version` counts the aggregate's facts; 0 means that the name is free."""

    version: int = 0
    model: Model = field(default_factory=NoModel)
    deployment: Deployment = field(default_factory=NotDeployed)


def evolve(state: Lifecycle, fact: AggregateFact) -> Lifecycle:
    """The state after a fact. Facts were decided on this very state, so a fact that does not fit is our mistake."""
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    match fact:
        case (
            ModelRegistered()
            | ModelVersionAdded()
            | ModelVersionSubmitted()
            | ModelVersionReviewed()
            | ModelVersionApproved()
            | ModelRetired()
        ):
            model = models.evolve(state.model, fact, 0)
            assert not isinstance(model, Misfit), model.reason
            return replace(state, version=fact.version, model=model)
        case VersionDeployed() | RolloutStarted() | RolloutAdvanced() | RolloutPromoted() | RolledBack() | VersionUndeployed():
            deployment = deployments.evolve(state.deployment, fact)
            assert not isinstance(deployment, Misfit), deployment.reason
            return replace(state, version=fact.version, deployment=deployment)
        case _:
            assert_never(fact)
