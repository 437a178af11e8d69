"""Documents of the folded topics: folded in the order of the chain, with a row for every offset, whatever arrives."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import Any, get_args

import pytest

from events.facts.deployments import ServiceSpec
from events.facts.headers import CE_TYPE
from events.facts.topics import FACTS, TOPICS, entries
from events.log.chain import NOT_SENT
from events.log.record import Record
from events.log.recorded_schemas import FORGED
from events.log.signature import signed_headers
from events.schema.codec import Undecodable
from lifecycle.facts import LifecycleFact
from lifecycle.status import GATEWAYS_KEPT
from projections.catalog.documents import STEPS, evolve
from projections.catalog.queries import _model, public  # pyright: ignore[reportPrivateUsage]
from projections.catalog.sink import HISTORY_TOPICS
from projections.catalog.tables import HISTORY_ROWS
from tests.support.folded_log import CODEC, OPENING, Log, base, opened
from tests.support.todays_codec import RELAY_KEY, SETUP_KEY

MODEL = "model-vision-demo-digits"


def published(number: int) -> tuple[str, dict[str, Any]]:
    body = {"book": "standard", "book_version": number, "effective_from": number, "prices": [], "by": "u"}
    return "PriceBookPublished", {**base(number), "version": number, **body}


def named(number: int, name: str) -> tuple[str, dict[str, Any]]:
    body = {"tenant": "acme", "display_name": name, "price_book": "standard", "by": "u"}
    return "TenantCreated", {**base(number), "version": number, **body}


def ready(number: int, version: str = "1.0.0", position: int = 99) -> tuple[str, dict[str, Any]]:
    return "VersionReady", {**base(number), "model": MODEL, "model_version": version, "replicas": number, "position": position}


def decided(name: str) -> dict[str, Any]:
    """The members of a decided fact of a rollout from 1.0.0 to 2.0.0."""
    members = {
        "version": 1,
        "tenant": "acme",
        "model": MODEL,
        "model_version": "1.0.0",
        "from_version": "1.0.0",
        "to_version": "2.0.0",
        "artifact": "sha256:" + "0" * 64,
        "spec": ServiceSpec().model_dump(),
        "weight_percent": 20,
        "reason": "r",
        "gate_state": "",
        "by": "u",
    }
    return {k: v for k, v in members.items() if k in FACTS[name].cls.model_fields}


def deployment(*facts: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The document after these facts at the positions 1, 2, …; a member that is not named is as in `decided`."""
    document: dict[str, Any] = {}
    for position, (name, body) in enumerate(facts, 1):
        before = json.dumps(document)
        whole = {**CODEC.decode(CODEC.encode_dict(name, {**base(position), **decided(name), **body}))[1]}
        changed = evolve("deployments", document, name, whole, position)
        assert json.dumps(document) == before, "a document is never changed in place"
        document = changed
    return document


DEPLOYED = (("VersionDeployed", {}), ready(1))
TRIED = (*DEPLOYED, ("RolloutStarted", {}), ready(1, "2.0.0"))
PROMOTED = (*TRIED, ("RolloutPromoted", {}))


REGISTERED: tuple[str, dict[str, Any]] = (
    "ModelRegistered",
    {
        **dict.fromkeys(("domain", "team", "name", "scenario", "task", "owner", "description"), "x"),
        "model": MODEL,
        "tenant": "acme",
        "tags": [],
        "compliance": {"licence": "MIT", "data_sources": ["uci"], "data_level": "public"},
    },
)


def alert(what: str, number: int, rule: str = "stuck", of: int = 0) -> tuple[str, dict[str, Any]]:
    about = {**base(number), "subject": MODEL, "rule": rule}
    if what == "resolved":
        return "AlertResolved", {**about, "raised": base(of)["event_id"]}
    return "AlertRaised", {**about, "severity": "critical", "message": "it hangs", "remedy": "restart it"}


def kinds(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["kind"], row["kafka_offset"]) for row in rows]


def test_every_fact_of_a_folded_topic_changes_some_document() -> None:
    expected = {(e.topic, e.name) for e in entries() if e.topic in HISTORY_TOPICS and e.name != "StoreOpened"}
    lifecycle = {(FACTS[cls.__name__].topic, cls.__name__) for cls in get_args(LifecycleFact)}
    assert {(topic, fact) for topic, steps in STEPS.items() for fact in steps} | lifecycle == expected


def test_every_topic_but_heartbeats_is_folded_into_some_table() -> None:
    assert {*HISTORY_TOPICS, "usage", "dead-letters"} == TOPICS.keys() - {"heartbeats"}


def test_each_record_leaves_a_row_and_what_it_changed() -> None:
    log = Log("prices")
    assert kinds(opened(log)) == [("store", 0)]
    rows = log.put(published(2), ("s", 5, 1)) + log.put(published(3), ("s", 6, 5))
    assert kinds(rows) == [("decided", 1), ("decided", 2)]
    assert [list(row["parts"]) for row in rows] == [["versions/2"], ["versions/3"]]
    assert [json.loads(row["head"])["book"] if row["head"] else "" for row in rows] == ["standard", ""], "once: it is the same then"
    assert sorted(log.fold.documents.document("standard")["versions"]) == ["2", "3"]
    assert [row["position"] for row in rows] == [5, 6]


def test_a_row_has_exactly_the_columns_of_its_table() -> None:
    # The engine skips what it does not know: a misspelt column would be empty, silently.
    columns = set(re.findall(r"^    (\w+) ", HISTORY_ROWS, re.MULTILINE)) - {"valid_from"}
    assert set(opened(Log("prices"))[0]) == columns


def test_a_copy_leaves_a_row_and_changes_nothing() -> None:
    log = Log("accounts")
    opened(log)
    log.put(named(2, "first"), ("s", 2, 1))
    log.put(named(3, "second"), ("s", 3, 2))
    rows = log.put(named(2, "first"), ("s", 2, 1))
    assert kinds(rows) == [("copy", 3)]
    assert log.fold.documents.document("acme")["display_name"] == "second"


def test_a_record_waits_for_its_predecessor_even_when_that_comes_later_on_the_log() -> None:
    log = Log("accounts")
    opened(log)
    first, second = log.make(named(2, "first"), ("s", 2, 1)), log.make(named(3, "second"), ("s", 3, 2))
    assert log.feed(second) == []
    rows = log.feed(first)
    assert kinds(rows) == [("decided", 2), ("decided", 1)]
    assert [row["step"] for row in rows] == [2, 3]
    assert log.fold.documents.document("acme")["display_name"] == "second"


def test_a_gap_holds_back_everything_behind_it() -> None:
    log = Log("deployments")
    opened(log)
    assert (
        log.put(
            (
                "RolledBack",
                {**base(9), "version": 2, "model": MODEL, "from_version": "2.0.0", "to_version": "1.0.0", "reason": "r", "by": "u"},
            ),
            ("s", 9, 7),
        )
        == []
    )
    assert log.put(ready(1)) == []
    assert log.fold.waiting == 2


def test_a_new_store_is_followed_only_by_its_own_fact() -> None:
    log = Log("accounts")
    opened(log)
    log.put(named(2, "old store"), ("s", 2, 1))
    assert log.put(named(2, "stranger"), ("t", 5, 4), signed=False) == []
    assert log.put(named(2, "stranger"), ("t", 5, 2), signed=False) == []
    rows = opened(log, "t", ("s", 2), 3)
    assert kinds(rows) == [("store", 4)]
    assert log.fold.documents.document("acme")["display_name"] == "old store"


def test_an_observed_fact_has_a_row_and_its_copy_changes_nothing() -> None:
    log = Log("deployments")
    opened(log)
    log.put(("VersionDeployed", {**base(9), "version": 1, **decided("VersionDeployed")}), ("s", 2, 1))
    rows = log.put(ready(1, position=2)) + log.put(ready(2, position=2)) + log.put(ready(1, position=2))
    assert kinds(rows) == [("observed", 2), ("observed", 3), ("copy", 4)]
    assert log.fold.documents.document(MODEL)["versions"]["1.0.0"]["replicas"] == 2


def test_a_fact_that_does_not_follow_has_a_row_and_changes_nothing() -> None:
    log = Log("deployments")
    opened(log)
    log.put(("VersionDeployed", {**base(9), "version": 1, **decided("VersionDeployed")}), ("s", 2, 1))
    before = log.fold.documents.document(MODEL)
    rows = log.put(ready(1, "7.0.0")) + log.put(("RolloutPromoted", {**base(8), **decided("RolloutPromoted")}), ("s", 3, 2))
    assert kinds(rows) == [("observed", 2), ("decided", 3)]
    assert (log.fold.documents.document(MODEL), log.dead) == (before, [])


@pytest.mark.parametrize(
    ("foreign", "code"),
    [
        (b"hello", "not_framed"),
        (b"\x00\x00\x00\xff\xff...", "unknown_schema"),
        (CODEC.encode_dict(*named(1, "no headers")), "no_place"),
        (CODEC.encode_dict(*ready(1)), "misplaced"),
    ],
)
def test_a_foreign_record_is_a_dead_letter_with_a_row_and_the_fold_goes_on(foreign: bytes, code: str) -> None:
    log = Log("accounts")
    opened(log)
    assert kinds(log.put(foreign)) == [("dead", 1)]
    assert log.dead == [code]
    assert kinds(log.put(named(2, "after"), ("s", 2, 1))) == [("decided", 2)]


def test_chain_headers_on_a_topic_without_a_chain_hold_nothing_back() -> None:
    log = Log("alerts")
    rows = log.put(b"garbage", ("stranger", 1 << 40, 7)) + log.put(alert("raised", 1), ("stranger", 9, 8))
    assert (kinds(rows), log.dead) == ([("dead", 0), ("observed", 1)], ["not_framed"])


def test_a_forged_name_of_any_length_is_a_dead_letter_and_the_fold_goes_on() -> None:
    log = Log("alerts")
    name, body = alert("raised", 1)
    for forged in ({"subject": "x" * 500_000}, {"rule": "x" * 500_000}):
        assert kinds(log.put((name, {**body, **forged}))) == [("dead", log.offset - 1)]
    assert log.dead == ["too_large", "too_large"]
    assert kinds(log.put(alert("raised", 2))) == [("observed", 2)]


def test_an_alert_is_open_until_the_fact_that_resolves_this_one() -> None:
    log = Log("alerts")

    def given_fact(*facts: tuple[str, dict[str, Any]]) -> dict[str, int]:
        for fact in facts:
            log.put(fact)
        return {rule: open_["raised_at"] - 1_000_000 for rule, open_ in log.fold.documents.document(MODEL)["open"].items()}

    assert given_fact(alert("raised", 1), alert("raised", 2, "document")) == {"stuck": 1, "document": 2}
    assert given_fact(alert("resolved", 3, of=2)) == {"stuck": 1, "document": 2}, "another rule of the subject"
    assert given_fact(alert("raised", 4), alert("resolved", 5, of=1)) == {"stuck": 4, "document": 2}, "raised anew meanwhile"
    assert given_fact(alert("resolved", 6, of=4)) == {"document": 2}
    last = log.fold.documents.document(MODEL)["resolved_last"]
    assert (last["rule"], last["remedy"], last["resolved_at"]) == ("stuck", "restart it", 1_000_006)


def registered(number: int, subject: str = "models-StoreOpened", **changed: Any) -> tuple[str, dict[str, Any]]:
    text = str(changed.pop("definition", json.dumps({"type": "record", "name": "StoreOpened", "fields": []})))
    given_fact = {"log_id": "l", "schema_id": 7, "subject": subject, "definition": text, "sha256": hashlib.sha256(text.encode()).digest()}
    return "SchemaRegistered", {**base(number), **given_fact, **changed}


def test_the_first_record_of_a_schema_id_and_of_the_log_count_and_others_are_dead_letters() -> None:
    log = Log("schemas")
    created: dict[str, Any] = {"log_id": "l", "partitioner": "p", "partitions": {"models": 4}}
    other = json.dumps({"type": "record", "name": "StoreOpened", "fields": [{"name": "a", "type": "long"}]})
    assert kinds(log.put(("LogCreated", {**base(1), **created}))) == [("observed", 0)]
    assert kinds(log.put(registered(2))) == [("observed", 1)]
    assert kinds(log.put(registered(2))) == [("copy", 2)]
    for forged in (
        ("LogCreated", {**base(1), **created, "log_id": "m"}),  # under the event_id of the true one: no copy
        ("LogCreated", {**base(3), **created, "partitions": {"models": 5}}),
        registered(2, definition=other),
        registered(4, sha256=bytes(32)),
        registered(5, log_id="m", schema_id=8),
        registered(6, definition="{}", schema_id=8),
        registered(7, subject="models-ModelRetired"),
    ):
        assert [row["kind"] for row in log.put(forged)] == ["dead"]
    unsigned = CODEC.encode_dict(*registered(8, schema_id=8))
    headers = {CE_TYPE: b"SchemaRegistered"}
    for signature in ({}, signed_headers(RELAY_KEY, "schemas", b"k", unsigned), signed_headers(SETUP_KEY, "alerts", b"k", unsigned)):
        log.feed(Record("schemas", 0, -1, 1, b"k", unsigned, headers | signature))
    wrong = ["another_log", "another_log", "schema_changed", "wrong_sha256", "another_log", "no_schema", "no_schema"]
    assert log.dead == [*wrong, "not_signed", "not_signed", "not_signed"]
    assert set(log.dead) == FORGED
    assert [key for key in ("l", "7", "m", "8") if log.fold.documents.document(key)] == ["l", "7"]


def test_one_id_of_a_schema_serves_every_subject_with_its_text() -> None:
    log = Log("schemas")
    for number, subject in enumerate(("models-StoreOpened", "prices-StoreOpened"), 1):
        assert kinds(log.put(registered(number, subject))) == [("observed", number - 1)]
    log.put(("LogCreated", {**base(3), "log_id": "l", "partitioner": "p", "partitions": {"models": 4}}))
    assert sorted(log.fold.documents.document("7")["subjects"]) == ["models-StoreOpened", "prices-StoreOpened"]
    assert log.fold.documents.document("l")["partitions"] == {"models": 4}


def test_a_forged_store_opening_is_a_dead_letter_and_the_fold_goes_on() -> None:
    log = Log("accounts")
    opened(log)
    for forged in (b"garbage", CODEC.encode_dict("StoreOpened", {**base(9), **OPENING, "store": "t"}, "accounts")):
        assert log.put(forged, ("t", 1 << 40, 1), signed=False) == []
    assert kinds(log.put(named(2, "after"), ("s", 2, 1))) == [("decided", 3)]
    rows, dead = log.fold.set_aside_older(2)
    assert (kinds(rows), [d.code for d in dead]) == ([("dead", 1), ("dead", 2)], [NOT_SENT, NOT_SENT])
    assert {row["position"] for row in rows} == {2}, "a number that nobody vouches for moves no position"


def test_of_two_claims_to_a_position_the_one_that_the_relay_signed_counts() -> None:
    """Whichever came first, and whatever was chained to the forged one (K26)."""
    log = Log("accounts")
    opened(log)
    forged = log.make(named(2, "forged"), ("s", 2, 1), signed=False)
    del log.hashes[2]
    true = log.make(named(3, "true"), ("s", 2, 1))
    assert log.feed(forged) == []
    assert log.put(named(4, "on the forged one"), ("s", 4, 9), signed=False) == []
    rows = log.feed(true)
    assert (kinds(rows), log.dead) == ([("decided", 3), ("dead", 1)], [NOT_SENT])
    assert log.fold.documents.document("acme")["display_name"] == "true"
    assert kinds(log.feed(replace(forged, timestamp=2))) == [("dead", 4)], "it comes again, behind the true one"
    assert kinds(log.feed(true)) == [("copy", 5)]
    assert log.dead == [NOT_SENT, NOT_SENT]


def test_one_signature_proves_the_records_before_it_and_a_wrong_one_none() -> None:
    log = Log("accounts")
    opened(log)
    assert log.put(named(2, "two"), ("s", 2, 1), signed=False) == []
    wrong = log.make(named(3, "three"), ("s", 3, 2))
    elsewhere = replace(wrong, headers=wrong.headers | {"signature": bytes(64)})
    assert (kinds(log.feed(elsewhere)), log.dead) == ([("dead", 2)], [NOT_SENT])
    assert kinds(log.feed(wrong)) == [("decided", 1), ("decided", 3)]


def test_what_the_relay_never_sent_is_a_dead_letter_and_what_came_behind_it_is_folded() -> None:
    log = Log("deployments")
    opened(log)
    assert log.put(b"forged", ("s", 1000, 999), signed=False) == []
    assert log.put(ready(2)) == [], "observed facts do not overtake what waits"
    deployed = ("VersionDeployed", {**base(3), **decided("VersionDeployed"), "model": MODEL})
    assert log.put(deployed, ("s", 3, 1))[0]["kind"] == "decided"
    assert log.fold.set_aside_older(1) == ([], []), "the relay may still have sent what came at that time"
    rows, dead = log.fold.set_aside_older(2)
    assert (kinds(rows), [d.code for d in dead]) == ([("dead", 1), ("observed", 2)], [NOT_SENT])
    assert rows[0]["position"] == 3, "a number that nobody vouches for moves no position"
    assert not log.fold.waiting


def test_a_decided_record_in_its_place_that_cannot_be_read_stops_the_fold() -> None:
    log = Log("accounts")
    opened(log)
    with pytest.raises(Undecodable):
        log.put(b"\x00\x00\x00\x00\x01", ("s", 2, 1))


def test_a_rollout_moves_the_weights_and_a_rollback_returns_them() -> None:
    back = ("RolledBack", {"from_version": "2.0.0", "to_version": "1.0.0"})
    half = ("RolloutAdvanced", {"weight_percent": 50})
    steps: list[tuple[tuple[Any, ...], dict[str, int]]] = [
        (DEPLOYED, {"1.0.0": 100}),
        (TRIED, {"1.0.0": 80, "2.0.0": 20}),
        ((*TRIED, half), {"1.0.0": 50, "2.0.0": 50}),
        (PROMOTED, {"2.0.0": 100}),
        ((*PROMOTED, back), {"1.0.0": 100}),
    ]
    for facts, weights in steps:
        assert deployment(*facts)["weights"] == weights
    document = deployment(*PROMOTED, back)
    assert (document["live"], document["serving"], document["candidate"]) == ("1.0.0", "1.0.0", "")


def test_a_rollback_to_a_version_that_is_not_loaded_shows_who_takes_the_calls_and_what_is_loading() -> None:
    """It showed weight 100 % for a version of status `undeployed`."""
    back = (*PROMOTED, ("VersionUndeployed", {}), ("RolledBack", {"from_version": "2.0.0", "to_version": "1.0.0"}))
    shown = deployment(*back)
    assert (shown["live"], shown["serving"], shown["weights"], shown["loading"]) == ("1.0.0", "2.0.0", {"2.0.0": 100}, ["1.0.0"])
    assert [(shown["versions"][v]["status"], shown["versions"][v]["replicas"]) for v in ("1.0.0", "2.0.0")] == [
        ("loading", 0),
        ("ready", 1),
    ]
    loaded = deployment(*back, ready(1))
    assert (loaded["serving"], loaded["weights"], loaded["loading"]) == ("1.0.0", {"1.0.0": 100}, [])


def test_weights_are_of_versions_that_are_ready() -> None:
    assert deployment(DEPLOYED[0])["weights"] == {}
    assert deployment(*TRIED[:-1])["weights"] == {"1.0.0": 100}
    assert (
        deployment(*PROMOTED, ("RolloutStarted", {"from_version": "2.0.0", "to_version": "1.0.0"}))["versions"]["1.0.0"]["status"]
        == "ready"
    )


def test_a_model_that_is_retired_shows_no_calls_before_its_versions_are_unloaded() -> None:
    model: dict[str, Any] = {}
    for position, (name, body) in enumerate(
        (REGISTERED, ("ModelRetired", {"model": MODEL, "reason": "old", "successor": "", "by": "u"})), 1
    ):
        model = evolve("models", model, name, {**base(position), "version": position, **body}, position)
    shown = _model(model, deployment(*TRIED), {"position": 2, "changed_at": 2})
    assert (shown["status"], shown["live"], shown["serving"], shown["weights"]) == ("retired", "", "", {})


def test_a_rejection_returns_the_version_to_draft() -> None:
    document: dict[str, Any] = {}
    lineage: dict[str, Any] = {}
    technical = {"format": "onnx", "framework": "f", "precision": "FP32", "inputs": [], "outputs": []}
    added = {
        "tenant": "acme",
        "technical": technical,
        "artifact": "a",
        "artifact_bytes": 1,
        "release_notes": "",
        "lineage": lineage,
        "by": "u",
    }
    review = {"review": "business", "by": "b", "comment": ""}
    evolved: list[tuple[str, dict[str, Any], str]] = [
        ("ModelVersionAdded", added, "draft"),
        ("ModelVersionSubmitted", {"by": "u"}, "pending_review"),
        ("ModelVersionReviewed", {**review, "verdict": "approved"}, "pending_review"),
        ("ModelVersionReviewed", {**review, "review": "security", "verdict": "rejected"}, "draft"),
        ("ModelVersionSubmitted", {"by": "u"}, "pending_review"),
        ("ModelVersionApproved", {"business_by": "b", "security_by": "s"}, "approved"),
    ]
    document = evolve("models", document, REGISTERED[0], {**base(1), "version": 1, **REGISTERED[1]}, 1)
    for fact, body, status in evolved:
        whole = {**base(1), "version": 2, "model": MODEL, "model_version": "1.0.0", **body}
        document = evolve("models", document, fact, whole, 2)
        assert document["versions"]["1.0.0"]["status"] == status


def test_other_tenants_see_approved_versions_and_nothing_of_their_reviews() -> None:
    draft = {"model_version": "2.0.0", "status": "draft", "technical": {}, "artifact": "d", "reviews": {}, "deployment": None}
    reviews = {"business": {"verdict": "approved", "by": "u-1", "comment": "as agreed with the customer"}}
    running = {"status": "failed", "replicas": 0, "error": "load_failed: secret path", "by": "u-2"}
    approved = {**draft, "model_version": "1.0.0", "status": "approved", "by": "u-2", "reviews": reviews, "deployment": running}
    model = {"model": MODEL, "tenant": "acme", "live": "1.0.0", "versions": {"1.0.0": approved, "2.0.0": draft}}
    shown = public(model)
    assert list(shown["versions"]) == ["1.0.0"]
    assert (shown["model"], shown["live"], shown["versions"]["1.0.0"]["deployment"]) == (
        MODEL,
        "1.0.0",
        {"status": "failed", "replicas": 0},
    )
    assert not [word for word in ("u-1", "u-2", "customer", "secret") if word in json.dumps(shown)]
    assert model["versions"] == {"1.0.0": approved, "2.0.0": draft}


def test_gateways_that_come_and_go_do_not_make_a_document_grow() -> None:
    document: dict[str, Any] = {}
    for number in range(3 * GATEWAYS_KEPT):
        for gateway in ("gateway-old", f"gateway-{number}"):
            body = {**base(number), "model": MODEL, "gateway": gateway, "epoch": "e", "position": number, "weights": {"1.0.0": 100}}
            document = evolve("deployments", document, "RouteApplied", body, 1)
    newest = [f"gateway-{n}" for n in range(3 * GATEWAYS_KEPT - GATEWAYS_KEPT + 1, 3 * GATEWAYS_KEPT)]
    assert sorted(document["routes"]) == sorted(["gateway-old", *newest])
    assert document["routes"]["gateway-old"]["position"] == 3 * GATEWAYS_KEPT - 1
