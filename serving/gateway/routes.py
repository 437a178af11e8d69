"""Who may call what, where a call goes and what it costs: keys, models, weights and prices as a fold of the decided facts.

Without validation (K5): the facts were checked when they were decided. What is known of a model is its lifecycle; what a call
reads of it is computed when that changes (`served_models`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain
from typing import Any

from access.keys import KEYS_FORMAT, Keys
from events.facts.models import Technical
from events.log.record import Coordinate
from lifecycle.facts import LifecycleFact, fact_of
from lifecycle.model import ActiveModel, ModelFact, NoModel, evolve
from lifecycle.route import NOWHERE
from lifecycle.status import DeploymentStatus, ObservedFact
from serving.gateway.current_prices import CurrentPrices
from serving.gateway.served_models import Model, Version

logger = logging.getLogger(__name__)

SPREAD = 61
"""A step through the hundred slots of a split that keeps equal versions far apart: coprime with 100, near its golden section."""


LINES_AT_ONCE = 2000
"""Lines of a slice of a snapshot: copied in a millisecond or two, so that no call waits for longer."""


def pick(weights: tuple[tuple[str, int], ...], turn: int) -> str:
    """The version that takes call number `turn`; weights are percent. Exact over every hundred calls, and spread within them."""
    if len(weights) == 1:
        return weights[0][0]
    slot = turn * SPREAD % 100
    for version, weight in weights:
        if slot < weight:
            return version
        slot -= weight
    raise AssertionError("the weights of a route add up to 100")


class Routes:
    """The fold: implements `events.log.fold_runner.Fold`. It never skips a fact silently."""

    code_version = f"routes-9 {KEYS_FORMAT}"

    def __init__(self) -> None:
        self.keys = Keys()
        self.models: dict[str, Model] = {}
        self.prices = CurrentPrices()
        self.changed: set[str] = set()
        """Models whose route changed since the last read."""
        self._lines: dict[str, bytes] = {}
        """Each model as its line in a snapshot, as it was when the last one was taken."""
        self._moved: set[str] = set()
        """Models whose line is no longer true."""

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        match name:
            case "ApiKeyIssued":
                self.keys.issue(body)
            case "ApiKeyRevoked":
                self.keys.revoke(body["tenant"], body["key_id"])
            case "TenantCreated":
                self.prices.add_tenant(body)
            case "PriceBookPublished":
                self.prices.add_version(body)
            case "RouteApplied":
                pass  # what other gateways route by sends no call elsewhere here
            case _:
                fact = fact_of(name, body)
                if fact is not None:
                    self._apply_to_model(fact, body.get("position", 0))  # else the opening of a store: nothing to route by

    def _apply_to_model(self, fact: LifecycleFact, position: int) -> None:
        """A fact that does not follow is named and changes nothing (K26)."""
        model = self.models.get(fact.model)
        if model is None:
            self._register(fact, position)
            return
        route = model.route
        misfit = model.apply(fact, position)
        if misfit is not None:
            logger.warning("the fact at position %d does not follow from those before it and changes nothing: %s", position, misfit.reason)
            return
        self._moved.add(fact.model)
        if model.route != route:
            self.changed.add(fact.model)

    def _register(self, fact: LifecycleFact, position: int) -> None:
        if isinstance(fact, ObservedFact):
            return  # anybody who can write to the log can say this of a model that is not; it changes nothing
        registered = None if not isinstance(fact, ModelFact) else evolve(NoModel(), fact, position)
        if not isinstance(registered, ActiveModel):
            raise KeyError(f"{type(fact).__name__} of {fact.model}, which no ModelRegistered came before")
        self.models[fact.model] = Model(registered, DeploymentStatus())
        self._moved.add(fact.model)

    # --- snapshots

    def dump(self) -> Iterator[bytes]:
        """How many models and price lists, a line for each, a line for each key."""
        for name in self._moved:
            self._lines[name] = self.models[name].to_json()
        self._moved.clear()
        models, prices, keys = list(self._lines.values()), self.prices.lines(), self.keys.dump()
        return chain((b"%d %d\n" % (len(models), len(prices)),), _slices(models), _slices(prices), keys)

    def load(self, state: bytes) -> None:
        head, *lines, _ = state.split(b"\n")
        count, prices_count = map(int, head.split())
        packed, priced, keys = lines[:count], lines[count : count + prices_count], lines[count + prices_count :]
        technicals = dict[str, Technical]()
        models = {m.model: m for m in (Model.from_json(line, technicals) for line in packed)}
        self.prices, self.keys, self.models = CurrentPrices.load(priced), Keys.load(keys), models
        self._lines = dict(zip(models, packed, strict=True))
        self._moved.clear()
        self.changed = {m.model for m in models.values() if m.route != NOWHERE}

    # --- questions

    def versions(self) -> list[Version]:
        """All of them; a copy, since the fold goes on in its own thread."""
        return [v for m in list(self.models.values()) for v in list(m.versions.values())]

    def find(self, name: str) -> tuple[Model, str | None] | None:
        """The model of a name and the version the name pins: the full id, or the address `…-v{semver}`."""
        model = self.models.get(name)
        if model is not None:
            return model, None
        head, mark, version = name.rpartition("-v")
        while mark:
            model = self.models.get(head)
            if model is not None:
                return model, version
            head, mark, tail = head.rpartition("-v")
            version = f"{tail}-v{version}"
        return None


def _slices(lines: list[bytes]) -> Iterator[bytes]:
    return (b"".join([line + b"\n" for line in lines[at : at + LINES_AT_ONCE]]) for at in range(0, len(lines), LINES_AT_ONCE))
