"""Documents in parts: what a fold keeps of them, asks for, and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from projections.catalog.document_cache import QUESTION_CHARS_MAX, DocumentCache
from projections.catalog.parts import HEAD, Parts, changes, join, looked_at, split

KEY = {"user": "ann", "revoked_at": None}
TENANT = {"tenant": "acme", "keys": {"k1": KEY, "k2": KEY}}


class Table:
    """What is stored, and what was asked."""

    def __init__(self, topic: str, documents: Mapping[str, dict[str, Any]]) -> None:
        self.parts = {key: split(topic, document) for key, document in documents.items()}
        self.asked: list[tuple[list[str], list[str] | None]] = []

    def load(self, keys: Sequence[str], names: Sequence[str] | None) -> Mapping[str, Parts]:
        self.asked.append((list(keys), None if names is None else list(names)))
        wanted = None if names is None else {HEAD, *names}
        return {k: {n: p for n, p in self.parts[k].items() if wanted is None or n in wanted} for k in keys if k in self.parts}


@pytest.mark.parametrize(
    ("topic", "document"),
    [
        ("accounts", TENANT),
        ("deployments", {"live": "1.0.0", "versions": {"1.0.0": {"status": "ready"}}, "routes": {"g/1": {"position": 1}}}),
        ("bills", {"tenant": "acme", "issued": {"number": 1}}),
        ("alerts", {"subject": "s", "open": {}}),
        ("models", {}),
    ],
)
def test_a_document_comes_back_from_its_parts(topic: str, document: dict[str, Any]) -> None:
    assert join(topic, {} if not document else split(topic, document)) == document


def test_only_what_changed_is_written_and_a_part_that_went_is_named() -> None:
    after = {"tenant": "acme", "keys": {"k1": {**KEY, "revoked_at": 7}, "k3": KEY}}
    assert changes("accounts", TENANT, after) == {"keys/k1": {**KEY, "revoked_at": 7}, "keys/k3": KEY, "keys/k2": None}
    assert changes("accounts", TENANT, {**TENANT, "tenant": "b"}) == {HEAD: {"tenant": "b"}}
    assert changes("accounts", {}, {"tenant": "b", "keys": {}}) == {HEAD: {"tenant": "b"}}
    assert changes("accounts", TENANT, TENANT) == {}


def test_a_fact_looks_at_its_own_part_and_one_of_a_deployment_at_all() -> None:
    assert looked_at("accounts", {"key_id": "k1"}) == ("keys/k1",)
    assert looked_at("accounts", {"display_name": "x"}) == ()
    assert looked_at("bills", {"number": 1}) == ()
    assert looked_at("deployments", {"model_version": "1.0.0"}) is None


def test_what_a_chunk_looks_at_is_asked_once_and_what_is_known_never_again() -> None:
    table = Table("accounts", {"acme": TENANT, "globex": {"tenant": "globex", "keys": {}}})
    cache = DocumentCache("accounts", table.load)
    cache.fetch({"acme": ["keys/k1"], "globex": ["keys/k9"]})
    assert table.asked == [(["acme", "globex"], ["", "keys/k1", "keys/k9"])]
    assert cache.document("acme", ["keys/k1"]) == {"tenant": "acme", "keys": {"k1": KEY}}
    assert cache.document("globex", ["keys/k9"]) == {"tenant": "globex", "keys": {}}
    assert len(table.asked) == 1
    assert cache.document("acme") == TENANT
    assert table.asked[1:] == [(["acme"], None)]
    cache.document("acme", ["keys/k7"])
    assert len(table.asked) == 2, "all of it is known: there is no such part"


def test_no_question_is_longer_than_a_url_may_be() -> None:
    table = Table("accounts", {"acme": TENANT})
    cache = DocumentCache("accounts", table.load)
    names = [f"keys/{number:0200}" for number in range(500)]
    cache.fetch({"acme": names, **{f"t{n:0500}": ["keys/k1"] for n in range(100)}})
    sizes = [sum(map(len, keys)) + sum(map(len, names or [])) for keys, names in table.asked]
    assert len(sizes) > 5 and max(sizes) <= QUESTION_CHARS_MAX
    table.asked.clear()
    assert cache.document("acme", names) == {"tenant": "acme", "keys": {}} and table.asked == []
    cache.fetch({f"u{n:0500}": None for n in range(100)})
    assert len(table.asked) == 3


def test_a_change_is_seen_before_it_is_written_and_survives_a_later_question() -> None:
    table = Table("accounts", {"acme": TENANT})
    cache = DocumentCache("accounts", table.load)
    cache.fetch({"acme": ["keys/k1"]})
    cache.change("acme", {"keys/k1": {"user": "bob"}, "keys/k2": None})
    assert cache.document("acme") == {"tenant": "acme", "keys": {"k1": {"user": "bob"}}}
    assert cache.take_changed() == ["acme"]
    assert cache.take_changed() == []


def test_what_was_used_longest_ago_is_forgotten_and_never_what_is_not_written() -> None:
    table = Table("accounts", {f"t{n}": {"tenant": f"t{n}", "keys": {}} for n in range(100)})
    cache = DocumentCache("accounts", table.load, parts_max=20)
    cache.fetch({"t0": []})
    cache.change("t0", {HEAD: {"tenant": "changed"}})
    changed = cache.take_changed()
    for n in range(1, 100):
        cache.fetch({f"t{n}": []})
    table.asked.clear()
    assert cache.document("t0", []) == {"tenant": "changed", "keys": {}}, "the table does not have it yet"
    assert cache.document("t99", []) and table.asked == []
    assert cache.document("t1", []) == {"tenant": "t1", "keys": {}} and table.asked == [(["t1"], [""])]
    cache.release(changed)
    for n in range(1, 100):
        cache.fetch({f"t{n}": []})
    table.parts["t0"] = {HEAD: {"tenant": "changed"}}
    assert cache.document("t0", []) == {"tenant": "changed", "keys": {}}
    assert table.asked[-1] == (["t0"], [""]), "and now it was read from there"


def test_the_part_that_changed_last_is_the_last_of_its_collection() -> None:
    table = Table("deployments", {"m": {"live": "", "versions": {}, "routes": {"g1": {"position": 1}, "g2": {"position": 1}}}})
    cache = DocumentCache("deployments", table.load)
    cache.fetch({"m": None})
    cache.change("m", {"routes/g1": {"position": 2}})
    assert json.dumps(cache.document("m")["routes"]) == '{"g2": {"position": 1}, "g1": {"position": 2}}'
