"""The list of models: each model's part is written once, prices are those of the caller's instant, and no turn of the loop writes all (K28)."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import orjson

from serving.gateway import model_list
from serving.gateway.model_list import MODELS_MAX, SLICE_MODELS, ModelList
from serving.gateway.routes import Routes
from serving.protocols.openai.operations import operation
from serving.protocols.operations import ListedModel, ListModels
from tests.support.lifecycle_facts import body
from tests.unit.serving.test_current_prices import AT, HOUR, NOW, NamedFact, published, tenant

PRICED = (tenant("acme"), tenant("globex", "other"), published(1, NOW, ("*", "calls", 500, 1)))


def name_of(number: int) -> str:
    return f"model-vision-core-m{number:06}"


def serving(number: int) -> list[NamedFact]:
    """The facts of a model that takes calls."""
    facts = [("ModelRegistered", {}), ("ModelVersionAdded", {}), ("VersionDeployed", {}), ("VersionReady", {})]
    version = {"model_version": "1.0.0"}
    return [
        (name, body(name, model=name_of(number), **more, **({} if name == "ModelRegistered" else version)) | {"position": position})
        for position, (name, more) in enumerate(facts, 1)
    ]


def market(models: int) -> Routes:
    routes = Routes()
    for fact in (*PRICED, *(fact for number in range(models) for fact in serving(number))):
        routes.apply(*fact, AT)
    return routes


class Counting:
    """The operation of OpenAI's list, with the models of which a part was written, and how many entries."""

    def __init__(self) -> None:
        found = operation(["models"])
        assert isinstance(found, ListModels)
        self.parts, self.entries = Counter[str](), 0
        self._plain = found
        self.operation = ListModels(self._part, self._entry, found.document)

    def _part(self, model: ListedModel) -> bytes:
        self.parts[model.model] += 1
        return self._plain.part(model)

    def _entry(self, part: bytes, pricing: bytes | None) -> bytes:
        self.entries += 1
        return self._plain.entry(part, pricing)


def listed(models: ModelList, counting: Counting, routes: Routes, payer: str = "acme", at: int = NOW) -> list[dict[str, Any]]:
    document = orjson.loads(asyncio.run(models.render(counting.operation, routes, routes.prices.at(payer, at))))
    assert document["object"] == "list"
    return document["data"]


def prices_of(found: list[dict[str, Any]]) -> set[int | None]:
    return {model["pricing"]["meters"]["calls"]["amount_micros"] if model["pricing"] else None for model in found}


def test_a_model_is_written_once_for_all_callers_and_prices() -> None:
    routes, models, counting = market(20), ModelList(), Counting()
    for payer, at in (("acme", NOW), ("globex", NOW), ("acme", NOW + HOUR), ("nobody", NOW)):
        assert len(listed(models, counting, routes, payer, at)) == 20
    assert set(counting.parts.values()) == {1} and len(counting.parts) == 20


def test_an_entry_is_what_openais_client_reads_with_the_callers_prices() -> None:
    (entry,) = listed(ModelList(), Counting(), market(1))
    meters = {"calls": {"amount_micros": 500, "per_units": 1}}
    assert entry.pop("pricing") == {"price_book": "standard", "book_version": 1, "currency": "CNY", "meters": meters}
    assert entry == {"id": name_of(0), "object": "model", "created": 1_700_000_000, "owned_by": "acme"}


def test_a_list_of_any_length_is_json() -> None:
    assert [len(listed(ModelList(), Counting(), market(count))) for count in range(4)] == [0, 1, 2, 3]


def test_each_caller_sees_its_own_prices_from_the_instant_they_hold() -> None:
    routes, models, counting = market(3), ModelList(), Counting()
    assert prices_of(listed(models, counting, routes)) == {500}
    assert prices_of(listed(models, counting, routes, "globex")) == {None}
    routes.apply(*published(2, NOW + HOUR, ("*", "calls", 700, 1)), AT)
    assert [prices_of(listed(models, counting, routes, at=NOW + HOUR + late)) for late in (-1, 0)] == [{500}, {700}]
    routes.apply(*published(1, NOW, ("*", "calls", 9, 1), book="other"), AT)
    assert prices_of(listed(models, counting, routes, "globex")) == {9}


def test_a_model_is_listed_as_soon_as_it_takes_calls_and_no_longer() -> None:
    routes, models, counting = market(2), ModelList(), Counting()
    assert len(listed(models, counting, routes)) == 2
    for fact in serving(7):
        routes.apply(*fact, AT)
    routes.apply("ModelRetired", {"position": 9, **body("ModelRetired", model=name_of(0), reason="old")}, AT)
    assert {model["id"] for model in listed(models, counting, routes)} == {name_of(1), name_of(7)}


def test_no_turn_of_the_loop_lists_more_than_a_slice() -> None:
    routes, counting, seen = market(3 * SLICE_MODELS + 1), Counting(), list[int]()

    async def run() -> None:
        task = asyncio.ensure_future(ModelList().render(counting.operation, routes, None))
        while not task.done():
            seen.append(counting.entries)
            await asyncio.sleep(0)

    asyncio.run(run())
    seen.append(counting.entries)
    turns = [after - before for before, after in itertools.pairwise(seen)]
    assert counting.entries == 3 * SLICE_MODELS + 1 and max(turns) <= SLICE_MODELS


def test_models_that_take_no_calls_have_no_room_in_the_page(monkeypatch: Any) -> None:
    routes = market(6)
    for number in range(4):
        routes.apply("ModelRetired", {"position": 9, **body("ModelRetired", model=name_of(number), reason="old")}, AT)
    monkeypatch.setattr(model_list, "MODELS_MAX", 2)
    assert MODELS_MAX >= 10_000
    assert [model["id"] for model in listed(ModelList(), Counting(), routes)] == [name_of(4), name_of(5)]
