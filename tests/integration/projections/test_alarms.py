"""What needs a person is an alert on the log, whoever sees it, and is resolved when it is over (K4, K26)."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from events.log import fold_runner
from events.log.chain import ChainPosition, Claim, claim_of
from events.log.heartbeat import TOPIC as HEARTBEATS
from events.log.record import Coordinate, Record
from projections.catalog import sink
from projections.catalog.record_alerts import RecordAlerts, StallAlerts
from projections.dead_letters.forged_alerts import ForgedAlerts
from serving.control.controller import Controller
from tests.support.market import MODEL, Market, running_market
from tests.support.polling import eventually

STALLED_S = 0.3


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with running_market(tmp_path_factory.mktemp("alarms")) as market:
        yield market


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sink, fold_runner):
        monkeypatch.setattr(module, "STALLED_S_MAX", STALLED_S)


def newest_decided(market: Market, topic: str) -> Claim[Record]:
    claims = [claim_of(record, record.headers) for record in market.reader.read(topic)]
    return max((claim for claim in claims if claim is not None), key=lambda claim: claim.at.position)


def unproven(market: Market, topic: str) -> Coordinate:
    """A record behind the newest decision of its partition, as the relay leaves one that is killed within a batch: nothing proves it."""
    last = newest_decided(market, topic)
    at = ChainPosition(last.at.store, last.at.position + 1_000_000, last.sha256)
    return market.writer.append(topic, b"k", b"?", at.headers, last.record.partition).result(10)


def facts_about(market: Market, subject: str, rule: str) -> list[tuple[str, dict[str, Any]]]:
    facts = [market.codec.decode(record.value) for record in market.reader.read("alerts")]
    return [(name, body) for name, body in facts if (body["subject"], body["rule"]) == (subject, rule)]


def names(market: Market, subject: str, rule: str) -> list[str]:
    return [name for name, _ in facts_about(market, subject, rule)]


def test_a_worker_raises_an_alert_for_a_partition_that_waits_and_resolves_it_when_it_goes_on(market: Market) -> None:
    market.tenant("standard")
    market.fold()
    first = unproven(market, "accounts")
    subject, rule = f"{first.topic}/{first.partition}", "projections.stalled"
    market.fold("accounts")
    eventually(lambda: names(market, subject, rule) == ["AlertRaised"], "the partition waits")
    market.restart()
    market.fold("accounts")
    market.fold("alerts")
    rounds = StallAlerts(market.clickhouse, RecordAlerts(market.clickhouse, market.codec, market.writer))
    assert rounds.resolve() == 0, "it waits still"
    shown = f"SELECT message FROM alerts WHERE subject = '{subject}' AND rule = '{rule}'"
    assert [str(first) in str(row["message"]) for row in market.clickhouse.rows(shown)] == [True]

    def goes_on() -> bool:
        market.writer.append(first.topic, b"k", b"what comes next", {}, first.partition).result(10)
        market.fold()
        return rounds.resolve() == 1

    eventually(goes_on, "the record is set aside after two heartbeats and the skew of clocks")
    market.fold("alerts")
    assert market.clickhouse.rows(shown) == []
    raised, *_, resolved = facts_about(market, subject, rule)
    assert (resolved[0], resolved[1]["raised"]) == ("AlertResolved", raised[1]["event_id"])
    assert {body["event_id"] for name, body in facts_about(market, subject, rule) if name == "AlertRaised"} == {raised[1]["event_id"]}


def test_the_controller_raises_alerts_for_a_partition_that_waits_and_for_forged_heartbeats(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no Ray: the controller leads, and has nothing to write to."""
    market.tenant("standard")
    controller = Controller(market.settings)
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        eventually(lambda: "Ray does not answer" in str(controller.health()["detail"]), "it leads")
        runner = controller._fold_runner  # pyright: ignore[reportPrivateUsage]
        assert runner is not None
        first = unproven(market, "models")
        subject, rule = f"{first.topic}/{first.partition}", "controller.stalled"
        eventually(lambda: names(market, subject, rule) == ["AlertRaised"], "the partition waits")
        eventually(lambda: names(market, subject, rule) == ["AlertRaised", "AlertResolved"], "it goes on")

        assert names(market, "heartbeats/0", "controller.forged_heartbeat") == []
        forged = [market.writer.append(HEARTBEATS, b"k", b"{}", {}).result(10) for _ in range(20)]
        eventually(lambda: runner.forged_heartbeats == 20, "all are counted")
        ((name, body),) = eventually(lambda: facts_about(market, "heartbeats/0", "controller.forged_heartbeat"), "and named once")
        assert (name, body["message"].startswith(f"{forged[0]}:")) == ("AlertRaised", True)
        assert "did not sign" in str(controller.health()["detail"])
        monkeypatch.setattr(fold_runner, "FORGED_QUIET_S", 1.0)
        eventually(
            lambda: names(market, "heartbeats/0", "controller.forged_heartbeat") == ["AlertRaised", "AlertResolved"], "none came since"
        )
        assert "did not sign" not in str(controller.health()["detail"])
    finally:
        controller.stop()
        thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("code", ["misplaced", "no_place"])
def test_a_record_on_a_topic_of_decisions_that_no_program_of_ours_writes_raises_one_alert(market: Market, code: str) -> None:
    partition = {"misplaced": 2, "no_place": 3}[code]
    base = {"event_id": str(uuid.uuid4()), "occurred_at": 1, "producer": "p"}
    misplaced = ("AlertResolved", {**base, "subject": "s", "rule": "r", "raised": "e"})
    no_place = ("ModelRetired", {**base, "version": 1, "by": "u", "reason": "", "model": MODEL})
    frame = market.codec.encode_dict(*(misplaced if code == "misplaced" else no_place))
    forged = [market.writer.append("models", b"k", frame, {}, partition).result(10) for _ in range(3)]
    market.fold()
    market.fold("alerts", "dead-letters")
    rows = market.clickhouse.rows(f"SELECT message FROM alerts WHERE rule = 'forged_record' AND subject = 'models/{partition}'")
    assert [all(f"{at}: {code}" in str(row["message"]) for at in forged) for row in rows] == [True]
    assert ForgedAlerts(market.clickhouse, market.reader, market.codec, market.writer).resolve() == 0
