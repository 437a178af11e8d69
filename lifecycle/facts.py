"""The facts of a model's lifecycle, as their classes, from bodies as the log's readers get them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from events.schema.trusted import trusted
from lifecycle.deployment import DeploymentFact
from lifecycle.model import ModelFact
from lifecycle.status import ObservedFact

LifecycleFact = ModelFact | DeploymentFact | ObservedFact
MODEL_FACTS: frozenset[type[ModelFact]] = frozenset(get_args(ModelFact))
_CLASSES: Mapping[str, type[LifecycleFact]] = {cls.__name__: cls for cls in get_args(LifecycleFact)}


def fact_of(name: str, body: Mapping[str, Any]) -> LifecycleFact | None:
    """The fact of a decoded body, not validated again (K5); None when it is not of a model's lifecycle."""
    cls = _CLASSES.get(name)
    return None if cls is None else trusted(cls, body)
