"""The list of all models with a caller's prices, joined of parts that are written once.

A model's part never changes and its prices are written when they are published, so nothing is remembered per caller or price book, and
nothing has to be forgotten when a fact comes or a price takes effect. Between slices other calls have their turn (K28).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving.gateway.current_prices import PriceList
from serving.gateway.routes import Routes
from serving.gateway.served_models import Model
from serving.protocols.operations import ListedModel, ListModels

MODELS_MAX = 10_000
"""As many models as the market is made for; one page."""
SLICE_MODELS = 500
"""Listed in one turn of the event loop: two or three milliseconds the first time, then less than one."""


class ModelList:
    """Keeps a part for each model and protocol: about 200 bytes, whatever callers there are."""

    def __init__(self) -> None:
        self._parts: dict[Callable[[ListedModel], bytes], dict[str, bytes]] = {}

    async def render(self, operation: ListModels, routes: Routes, prices: PriceList | None) -> bytes:
        """The document of the models that take calls. `prices`: those in force for the caller when its call came."""
        parts = self._parts.setdefault(operation.part, {})
        models, entries = list(routes.models.values()), list[bytes]()
        for at in range(0, len(models), SLICE_MODELS):
            if at:
                await asyncio.sleep(0)
            for model in models[at : at + SLICE_MODELS]:
                if model.route.weights:
                    part = parts.get(model.model) or parts.setdefault(model.model, operation.part(_listed(model)))
                    entries.append(operation.entry(part, None if prices is None else prices.pricing(model.model)))
            if len(entries) >= MODELS_MAX:
                break
        return operation.document(entries[:MODELS_MAX])


def _listed(model: Model) -> ListedModel:
    return ListedModel(model.model, model.provider, model.registered_at // 1_000_000)
