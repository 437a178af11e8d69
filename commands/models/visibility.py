"""Who may see a model, and which parts of it."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import orjson

from access.principal import Principal
from commands.models.aggregate import MODEL
from commands.models.guards import no_model
from commands.models.semver import parse
from commands.processor.aggregates import Aggregates
from commands.processor.rejection import Rejected
from lifecycle.model import ActiveModel, Approved, NoModel
from lifecycle.state import Lifecycle

_ADDRESS = re.compile(r"^(model-[a-z0-9-]{1,160})-v(\d.*)$")


def owned(state: Lifecycle, principal: Principal) -> Rejected | None:
    """Another tenant's model is answered like one that does not exist."""
    return None if isinstance(state.model, NoModel) or principal.acts_for(state.model.tenant) else no_model()


def shown(state: Lifecycle, principal: Principal) -> Rejected | None:
    """Reviewers work for the market and see the models of every tenant."""
    return None if not isinstance(state.model, NoModel) and principal.sees(state.model.tenant) else no_model()


def parent_known(aggregates: Aggregates, principal: Principal, parent: str) -> bool:
    """Whether `model-…-v1.0.0` names a version that the caller may know of: an approved one of anybody's model, or their own."""
    address = _ADDRESS.match(parent)
    if address is None or parse(address[2]) is None:
        return False
    model = aggregates.load(MODEL, address[1]).model
    if isinstance(model, NoModel) or address[2] not in model.versions:
        return False
    return principal.acts_for(model.tenant) or isinstance(model.versions[address[2]], Approved)


def model_answer(state: Lifecycle, _command: object = None) -> dict[str, Any]:
    """What a person wants to know after a command: where the model and its traffic stand now."""
    assert not isinstance(state.model, NoModel)
    return {"model": state.model.model, "state": state.model.kind, **_traffic(state)}


def whole_model(state: Lifecycle) -> dict[str, Any]:
    """Everything that commands are decided on."""
    return {**asdict(state.model), "version": state.version, **_traffic(state)}


def _traffic(state: Lifecycle) -> dict[str, Any]:
    """What was decided about the traffic of a model that is not retired."""
    return {"deployment": orjson.loads(orjson.dumps(state.deployment, default=vars))} if isinstance(state.model, ActiveModel) else {}
