"""A model with its versions and its deployment is one aggregate, so that a rollout and a retirement cannot both win."""

from __future__ import annotations

from commands.processor.aggregate_kind import AggregateKind
from lifecycle.state import Lifecycle, evolve

MODEL: AggregateKind[Lifecycle] = AggregateKind("model", Lifecycle(), evolve)
