"""A model with its versions and its deployment is one aggregate, so that a rollout and a retirement cannot both win."""

from __future__ import annotations

from commands.processor.aggregate_kind import AggregateKind
from commands.processor.tenant_quota import TenantShare
from lifecycle.model import NoModel
from lifecycle.resources import taken
from lifecycle.state import Lifecycle, evolve


def _share(state: Lifecycle) -> TenantShare | None:
    """Whoever deploys it, a model takes of its owner's quota."""
    return None if isinstance(state.model, NoModel) else TenantShare(state.model.tenant, taken(state.deployment))


MODEL: AggregateKind[Lifecycle] = AggregateKind("model", Lifecycle(), evolve, _share)
