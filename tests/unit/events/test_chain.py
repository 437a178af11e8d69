"""However decided records reach a fold, it applies each exactly once, in the store's order, or waits (K1, K4)."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.facts.topics import TOPICS
from events.log.chain import Chain, ChainPosition, Claim, claim_of, is_proof
from events.log.client import LogFull
from events.log.decided_records import ChainBroken, DecidedRecords
from events.log.fold_runner import FORGED_QUIET_S, Alarm, FoldRunner
from events.log.heartbeat import Heartbeat
from events.log.record import Coordinate, Record
from events.log.signature import signed_headers
from events.schema.codec import Codec, Undecodable
from projections.bills.decided_for_bills import decided_facts
from tests.support.todays_codec import (
    RELAY_KEY,
    RELAY_KEYS,
    SCHEMA_ID_MIN,
    SETUP_KEY,
    RecordedLog,
    RelayedLog,
    heartbeat_record,
    settings_with_keys,
)

OPENINGS = 8


@dataclass
class RecordingFold:
    code_version: str = "1"
    names: list[str] = field(default_factory=list)

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        if name != "StoreOpened":
            self.names.append(body["model"] if "model" in body else body["tenant"])

    def dump(self) -> bytes:
        return "\n".join(self.names).encode()

    def load(self, state: bytes) -> None:
        self.names = state.decode().split("\n")


SETTINGS = settings_with_keys()
"""Once: reading the environment takes longer than a fold of forty records."""


def _log(codec: Codec, count: int, rng: random.Random) -> tuple[dict[tuple[str, int], list[Record]], Record]:
    """`count` decided facts spread over two topics, chained per partition, and the heartbeat after them."""
    by_partition: dict[tuple[str, int], list[Record]] = {}
    relayed = RelayedLog()
    base = {"event_id": "e", "occurred_at": 1, "producer": "p", "version": 1, "by": "u", "reason": ""}
    for opening, tp in enumerate([(t, p) for t in ("models", "accounts") for p in range(4)], start=1):
        value = codec.encode_dict("StoreOpened", base | {"store": "s", "previous_store": "", "previous_position": 0}, tp[0])
        by_partition[tp] = [relayed.record(tp, 0, opening, value, key=b"s", headers={"ce_type": b"StoreOpened"})]
    for position in range(OPENINGS + 1, OPENINGS + count + 1):
        topic, name = rng.choice([("models", "ModelRetired"), ("accounts", "ApiKeyRevoked")])
        tp = (topic, rng.randrange(4))
        subject = str(position - OPENINGS)
        value = codec.encode_dict(name, base | {"model": subject, "tenant": subject, "key_id": "k"})
        by_partition[tp].append(relayed.record(tp, len(by_partition[tp]), position, value, signed=rng.random() < 0.5))
    for records in by_partition.values():  # the last of a batch is signed
        records[-1] = _signed(records[-1])
    heartbeat = Heartbeat("s", OPENINGS + count, {f"{t}/{p}": n for (t, p), (n, _) in relayed.heads.items()}, 1)
    return by_partition, heartbeat_record(heartbeat)


def _claim(record: Record) -> Claim[Record]:
    claim = claim_of(record, record.headers)
    assert claim is not None
    return claim


def _signed(record: Record) -> Record:
    at, sha256, _, _ = _claim(record)
    return replace(record, headers=record.headers | at.signed_headers(RELAY_KEY, record.topic, record.partition, sha256))


def _stranger(tp: tuple[str, int], offset: int, at: ChainPosition, value: bytes | None = b"x", timestamp: int = 0) -> Record:
    return Record(*tp, offset, timestamp, b"k", value, at.headers)


def _after(record: Record, position: int, store: str = "s") -> ChainPosition:
    """What a stranger writes who can read the log: the next position behind a record."""
    return ChainPosition(store, position, _claim(record).sha256)


def _fold_runner(codec: Codec, fold: RecordingFold, alarm: Alarm | None = None) -> FoldRunner:
    return FoldRunner(SETTINGS, codec, "log", ("models", "accounts"), fold, name="test", alarm=alarm)


def _feed(fold_runner: FoldRunner, records: list[Record]) -> None:
    for record in records:
        fold_runner._receive(record)  # pyright: ignore[reportPrivateUsage]
    fold_runner._apply_to_heartbeat()  # pyright: ignore[reportPrivateUsage]


def test_a_thousand_relative_orders_of_the_partitions_give_one_state(codec: Codec) -> None:
    rng = random.Random(1)
    by_partition, heartbeat = _log(codec, 40, rng)
    for _ in range(1000):
        fold, queues = RecordingFold(), {tp: list(rs) for tp, rs in by_partition.items()}
        order: list[Record] = []
        while queues:
            tp = rng.choice(list(queues))
            order.append(queues[tp].pop(0))
            if not queues[tp]:
                del queues[tp]
        order.insert(rng.randrange(len(order) + 1), heartbeat)  # a heartbeat may arrive before what it speaks of
        _feed(_fold_runner(codec, fold), order)
        assert fold.names == [str(n) for n in range(1, 41)]


def test_copies_and_two_relays_at_once_change_nothing(codec: Codec) -> None:
    rng = random.Random(2)
    by_partition, heartbeat = _log(codec, 60, rng)
    for _ in range(200):
        fold, order = RecordingFold(), list[Record]()
        for records in by_partition.values():
            twice = records + [rng.choice(records) for _ in range(10)]
            rng.shuffle(twice)
            order += twice
        _feed(_fold_runner(codec, fold), [*order, heartbeat])
        assert fold.names == [str(n) for n in range(1, 61)]


def test_nothing_is_applied_past_a_missing_record(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 30, random.Random(3))
    tp = next(tp for tp, rs in by_partition.items() if len(rs) >= 3)
    gone = by_partition[tp].pop(1)
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    _feed(fold_runner, [r for rs in by_partition.values() for r in rs] + [heartbeat])
    assert fold.names == []  # the heartbeat names a record that is not there: the state before it stays
    assert fold_runner.lag > 0
    _feed(fold_runner, [gone, heartbeat])
    assert fold.names == [str(n) for n in range(1, 31)]


def test_a_record_of_another_store_is_taken_when_the_relay_signed_it() -> None:
    chain, tp, old = Chain[Record](RELAY_KEYS), ("models", 0), RelayedLog("a")
    new = RelayedLog("b")
    first = old.record(tp, 0, 5, b"x")
    assert chain.add(_claim(first)) and [c.at.position for c in chain.prove().records] == [5]
    for at in (ChainPosition("b", 6, bytes(32)), _after(first, 6, "b")):
        assert chain.add(_claim(_stranger(tp, 1, at)))
        assert chain.prove().records == []
    new.heads[tp] = 5, _claim(first).sha256
    opening = new.record(tp, 2, 7, b"opening")
    assert chain.add(_claim(opening))
    proven = chain.prove()
    assert ([c.record for c in proven.records], len(proven.foreign), chain.store) == ([opening], 2, "b")
    assert not chain.add(_claim(first))


def test_of_rivals_the_signed_way_is_taken_wherever_it_forks() -> None:
    """A stranger answers each record of the relay with one of its own, chained to the true or to its own records, before or behind it."""
    for seed in range(300):
        rng, tp, relayed = random.Random(seed), ("models", 0), RelayedLog()
        true = [relayed.record(tp, 0, 10 * n, b"true %d" % n, signed=n == 12 or rng.random() < 0.3) for n in range(1, 13)]
        records, known = list[Record](), [ChainPosition("s", 0, bytes(32))]
        heads = [bytes(32)]
        for record in true:
            forged = [
                _stranger(
                    tp, 0, ChainPosition("s", rng.choice([_claim(record).at.position, 10 * len(records) + 5]), rng.choice(heads)), b"f"
                )
                for _ in range(rng.randrange(3))
            ]
            if rng.random() < 0.3:
                forged.append(replace(record, headers=record.headers | {"signed_by": RELAY_KEY.key_id.encode(), "signature": bytes(64)}))
            batch = [*forged, record] if rng.random() < 0.7 else [record, *forged]
            heads += [_claim(r).sha256 for r in batch]
            records += batch
        assert known
        chain, taken = Chain[Record](RELAY_KEYS), list[Record]()
        for offset, record in enumerate(records):
            chain.add(_claim(replace(record, offset=offset)))
            if rng.random() < 0.4:
                taken += [c.record for c in chain.prove().records]
        taken += [c.record for c in chain.prove().records]
        assert [r.value for r in taken] == [r.value for r in true], seed
        assert (chain.position, chain.waiting and chain.waiting[0].at.position <= 120) in ((120, []), (120, False)), seed


def test_records_signed_with_a_key_that_counts_no_more_are_proven_by_the_first_of_the_new_key() -> None:
    tp, retired = ("models", 0), RelayedLog(key=SETUP_KEY)
    old = [retired.record(tp, n, n + 1, b"%d" % n) for n in range(50)]
    chain = Chain[Record](RELAY_KEYS)
    for record in old:
        chain.add(_claim(record))
        assert chain.prove() == ([], [], [])
    new = RelayedLog()
    new.heads = retired.heads
    chain.add(_claim(new.record(tp, 50, 51, b"new")))
    assert [c.at.position for c in chain.prove().records] == list(range(1, 52))


@given(st.dictionaries(st.sampled_from(["store", "position", "previous_sha256", "signature", "signed_by"]), st.binary(max_size=32)))
def test_strange_headers_are_no_claim(headers: dict[str, bytes]) -> None:
    claim = claim_of(Record("models", 0, 0, 0, None, None, headers), headers)
    assert claim is None or ({"store", "position", "previous_sha256"} <= set(headers) and not is_proof(claim, RELAY_KEYS))


def _heartbeat_of(value: bytes) -> Record:
    return Record("heartbeats", 0, 0, 1, b"s", value, signed_headers(RELAY_KEY, "heartbeats", b"s", value))


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_malformed_bytes_are_no_heartbeat(value: bytes) -> None:
    assert Heartbeat.from_record(_heartbeat_of(value), RELAY_KEYS) is None


@pytest.mark.parametrize(
    "value",
    [
        b'{"store":"s","position":1e999,"sent":{},"number":1}',
        b'{"store":"s","position":1,"sent":{"models/0":1e999},"number":1}',
        b'{"store":"s","position":9223372036854775808,"sent":{},"number":1}',
        b'{"store":"s","position":-1,"sent":{},"number":1}',
        b'{"store":"s","position":1,"sent":{},"number":-1}',
        b'{"store":"s","position":1,"sent":{}}',
        b"[" * 100_000,
    ],
)
def test_json_that_is_no_heartbeat_stops_no_fold(value: bytes) -> None:
    assert Heartbeat.from_record(_heartbeat_of(value), RELAY_KEYS) is None


def test_a_position_that_no_store_can_have_is_no_chain_position() -> None:
    record = RelayedLog().record(("models", 0), 0, 1, b"x")
    assert claim_of(record, record.headers) is not None
    for position in (b"9223372036854775808", b"0", b"-1", b"", b"1.5"):
        assert claim_of(record, record.headers | {"position": position}) is None
    for previous in (b"", bytes(31), bytes(33)):
        assert claim_of(record, record.headers | {"previous_sha256": previous}) is None


def test_a_decided_fact_without_a_chain_position_is_not_applied(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 20, random.Random(6))
    again = [
        Record(r.topic, r.partition, 900 + i, 0, r.key, r.value, {}) for i, r in enumerate(r for rs in by_partition.values() for r in rs)
    ]
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    _feed(fold_runner, [*(r for rs in by_partition.values() for r in rs), *again, heartbeat])
    assert fold.names == [str(n) for n in range(1, 21)]
    assert fold_runner.unreadable == len(again)


def test_an_observed_fact_of_another_topic_is_not_applied(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 3, random.Random(7))
    body = {"event_id": "e", "occurred_at": 1, "producer": "p", "subject": "s", "rule": "r", "raised": "e", "model": "m"}
    foreign = Record("models", 0, 900, 0, None, codec.encode_dict("AlertResolved", body), {})
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    _feed(fold_runner, [*(r for rs in by_partition.values() for r in rs), foreign, heartbeat])
    assert fold.names == ["1", "2", "3"]


def test_a_heartbeat_that_leaves_out_a_partition_is_not_believed(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 10, random.Random(8))
    forged = heartbeat_record(Heartbeat("s", 1 << 60, {}, 2), 1)
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    _feed(fold_runner, [*(r for rs in by_partition.values() for r in rs), heartbeat, forged])
    assert (fold_runner.position, len(fold.names)) == (OPENINGS + 10, 10)


def test_a_heartbeat_that_the_relay_did_not_sign_or_an_old_one_written_again_is_not_believed(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 10, random.Random(8))
    decoded = Heartbeat.from_record(heartbeat, RELAY_KEYS)
    assert decoded is not None
    far = Heartbeat("s", 1 << 60, decoded.sent, 9)
    borrowed = replace(heartbeat_record(far), headers=heartbeat.headers)
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    unsigned = replace(heartbeat_record(far), headers={})
    forged = [heartbeat_record(far, key=SETUP_KEY), borrowed, unsigned]
    elsewhere = replace(heartbeat_record(far), key=b"another store")
    _feed(fold_runner, [*(r for rs in by_partition.values() for r in rs), *forged, elsewhere])
    assert (fold_runner.position, fold.names, fold_runner.age_s()) == (0, [], float("inf"))
    _feed(fold_runner, [heartbeat])
    assert (fold_runner.position, len(fold.names)) == (OPENINGS + 10, 10)
    _feed(fold_runner, [replace(heartbeat, timestamp=time.time_ns() // 1_000_000, offset=7)])
    assert fold_runner.age_s() > 1e9 / 2, "it was written in 1970; a copy of it makes nothing fresh"


def test_what_the_relay_never_sent_is_set_aside_and_named_and_the_fold_goes_on(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    by_partition, heartbeat = _log(codec, 10, random.Random(8))
    decoded = Heartbeat.from_record(heartbeat, RELAY_KEYS)
    assert decoded is not None
    last = by_partition["models", 0][-1]
    positions = [ChainPosition("s", 1000, b"?" * 32), _after(last, 77), _after(last, 78, "nobody"), ChainPosition("nobody", 79, bytes(32))]
    forged = [_stranger(("models", 0), 900 + n, at) for n, at in enumerate(positions)]
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    _feed(fold_runner, [*forged, *(r for rs in by_partition.values() for r in rs), heartbeat])
    assert (len(fold.names), fold_runner.lag, caplog.messages) == (10, 4, [])
    for number in (2, 3):
        later = heartbeat_record(replace(decoded, number=number), number)
        _feed(fold_runner, [replace(later, timestamp=1_000_000 + number)])
    assert fold_runner.lag == 0
    (line,) = caplog.messages
    assert line.startswith("models/0: ") and all(str(r.coordinate) in line for r in forged)


class _Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def _round(fold_runner: FoldRunner, *records: Record) -> None:
    """As the runner's thread does it."""
    _feed(fold_runner, list(records))
    fold_runner._note_stalls()  # pyright: ignore[reportPrivateUsage]
    fold_runner._sync_alarm()  # pyright: ignore[reportPrivateUsage]


def test_a_partition_that_waits_is_an_alert_until_it_goes_on_also_across_a_restart(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = _Clock(monkeypatch), RecordedLog(codec)
    by_partition, heartbeat = _log(codec, 30, random.Random(3))
    tp = next(tp for tp, rs in by_partition.items() if len(rs) >= 3)
    gone = by_partition[tp].pop(1)
    records, what = [r for rs in by_partition.values() for r in rs], (f"{tp[0]}/{tp[1]}", "test.stalled")
    fold_runner = _fold_runner(codec, RecordingFold(), log.alerts("test"))
    _round(fold_runner, *records, heartbeat)
    clock.now += 29
    _round(fold_runner)
    assert (log.written, fold_runner.troubles) == ([], [])
    clock.now += 2
    for _ in range(3):
        _round(fold_runner)
    (raised,) = log.written
    assert raised[:3] == ("Raised", *what) and str(by_partition[tp][1].coordinate) in fold_runner.troubles[0]

    restarted = log.alerts("test")
    restarted.restore(codec, log.frames)
    again = _fold_runner(codec, fold := RecordingFold(), restarted)
    again._ends_at_start = {at: rs[-1].offset + 1 for at, rs in by_partition.items()}  # pyright: ignore[reportPrivateUsage]
    _round(again)
    _round(again, *records, heartbeat)
    clock.now += 31
    _round(again)
    assert log.written == [raised], "it waits still: neither is it over, nor another one"
    _round(again, replace(gone, offset=by_partition[tp][-1].offset + 1), heartbeat)
    assert log.written[1:] == [("Resolved", *what, raised[3])]
    assert (len(fold.names), again.troubles) == (30, [])


def test_a_fold_goes_on_while_kafka_takes_no_alert_and_raises_it_later(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = _Clock(monkeypatch), RecordedLog(codec)
    by_partition, heartbeat = _log(codec, 10, random.Random(8))
    alerts, append = log.alerts("test"), log.append

    def full(*record: Any) -> None:
        raise LogFull("100 000 records wait")

    monkeypatch.setattr(log, "append", full)
    fold_runner = _fold_runner(codec, fold := RecordingFold(), alerts)
    waits = _stranger(("models", 0), 900, ChainPosition("s", 1000, b"?" * 32))
    _round(fold_runner, waits, *(r for rs in by_partition.values() for r in rs), heartbeat)
    clock.now += 31
    _round(fold_runner)
    assert (len(fold.names), log.written) == (10, [])
    monkeypatch.setattr(log, "append", append)
    clock.now += 10
    _round(fold_runner)
    assert [written[:3] for written in log.written] == [("Raised", "models/0", "test.stalled")]


def test_forged_heartbeats_are_counted_and_named_in_one_alert_that_ends_when_none_comes(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, log = _Clock(monkeypatch), RecordedLog(codec)
    by_partition, heartbeat = _log(codec, 10, random.Random(8))
    fold_runner = _fold_runner(codec, RecordingFold(), log.alerts("test"))
    _round(fold_runner, *(r for rs in by_partition.values() for r in rs), heartbeat, heartbeat)
    assert (fold_runner.forged_heartbeats, log.written) == (0, []), "a copy of the relay's own makes nothing fresh, and is not forged"
    _round(
        fold_runner, *(replace(heartbeat, headers={}, offset=offset) for offset in range(5, 9)), replace(heartbeat, value=None, offset=9)
    )
    clock.now += FORGED_QUIET_S - 1
    _round(fold_runner, replace(heartbeat, value=b"garbage", offset=10))
    assert fold_runner.forged_heartbeats == 6
    assert [written[:3] for written in log.written] == [("Raised", "heartbeats/0", "test.forged_heartbeat")]
    assert [line for line in caplog.messages if "heartbeats/0/5" in line] and len(caplog.messages) == 1
    clock.now += FORGED_QUIET_S + 1
    _round(fold_runner)
    assert [written[0] for written in log.written] == ["Raised", "Resolved"]
    _round(fold_runner, replace(heartbeat, value=b"garbage", offset=11))
    assert [written[0] for written in log.written] == ["Raised", "Resolved", "Raised"]


def test_a_start_does_not_wait_for_what_the_relay_never_sent(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 10, random.Random(8))
    decoded = Heartbeat.from_record(heartbeat, RELAY_KEYS)
    assert decoded is not None
    foreign = _stranger(("models", 0), 900, ChainPosition("s", 1000, b"?" * 32), timestamp=2_000_000)
    fold_runner = _fold_runner(codec, RecordingFold())
    fold_runner._heartbeats_end = 1  # pyright: ignore[reportPrivateUsage]
    _feed(fold_runner, [foreign, *(r for rs in by_partition.values() for r in rs), heartbeat])
    for offset in (1, 2):
        assert not fold_runner.caught_up
        _feed(fold_runner, [heartbeat_record(replace(decoded, number=offset + 1), offset)])
    assert (fold_runner.caught_up, fold_runner.lag) == (True, 1)


def test_records_accepted_later_do_not_shorten_the_measured_wait_of_an_earlier_one(codec: Codec) -> None:
    by_partition, _ = _log(codec, 40, random.Random(9))
    records = by_partition["models", 0]
    assert len(records) >= 4
    foreign = _stranger(("models", 0), 900, ChainPosition("nobody", 1000, b"?" * 32))
    fold_runner = _fold_runner(codec, RecordingFold())
    first = next(n for n, record in enumerate(records) if "signature" in record.headers)
    _feed(fold_runner, [foreign, *records[: first + 1]])
    partition = fold_runner._partitions["models", 0]  # pyright: ignore[reportPrivateUsage]
    since = partition.stalled_at
    assert since is not None
    _feed(fold_runner, records[first + 1 :])
    assert (partition.stalled_at, partition.waiting) == (since, [foreign])


def test_unreadable_bytes_without_a_chain_position_are_skipped_and_counted(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 5, random.Random(4))
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    _feed(fold_runner, [Record("models", 1, 99, 0, None, b"garbage", {}), *(r for rs in by_partition.values() for r in rs), heartbeat])
    assert fold.names == ["1", "2", "3", "4", "5"]
    assert fold_runner.unreadable == 1


FORGERIES = {
    "garbage": b"garbage",
    "no_value": None,
    "torn": b"\x00" + SCHEMA_ID_MIN.to_bytes(4, "big") + b"\xff\xff",
    "unknown_schema": b"\x00\x7f\x00\x00\x00...",
    "another_fact": b"retired",
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("name", ["ModelRetired", "StoreOpened"])
def test_a_forged_claim_to_the_next_position_changes_no_reader_of_the_chain(
    codec: Codec, forgery: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    by_partition, heartbeat = _log(codec, 20, random.Random(6))
    body = {"event_id": "e", "occurred_at": 1, "producer": "p", "version": 1, "by": "u", "reason": "", "model": "forged"}
    value = codec.encode_dict("ModelRetired", body) if forgery == "another_fact" else FORGERIES[forgery]
    records = by_partition["models", 1]
    foreign = _stranger(
        ("models", 1), 900, _after(records[0], _claim(records[1]).at.position, "t" if name == "StoreOpened" else "s"), value
    )
    foreign = replace(foreign, headers=foreign.headers | {"ce_type": name.encode()})
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    rest = [r for tp, rs in by_partition.items() if tp != ("models", 1) for r in rs]
    _feed(fold_runner, [*records[:1], foreign, *records[1:], *rest, heartbeat])
    assert fold.names == [str(n) for n in range(1, 21)]
    assert (fold_runner.unreadable, fold_runner.lag) == (1, 0)
    assert [line for line in caplog.messages if "aside" in line and "models/1/900" in line]

    # The same record before the other readers of the chain: bills from the log, and the rebuild of a store.
    topics = {("models", 1): [*records[:1], foreign, *records[1:]]}
    positions = [_claim(r).at.position for r in records]
    assert [f.position for f in decided_facts(_Reading(topics), codec, "models")] == positions  # type: ignore[arg-type]
    decided = DecidedRecords(RELAY_KEYS)
    assert [c.at.position for c in decided.of(topics["models", 1])] == positions
    assert decided.foreign == [foreign]


def test_a_claim_that_nothing_proves_is_no_reason_to_stop_only_when_the_relay_sent_no_more(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 20, random.Random(6))
    newest, records = Heartbeat.from_record(heartbeat, RELAY_KEYS), by_partition["models", 1]
    foreign = _stranger(("models", 1), 900, _after(records[-1], 999))
    decided = DecidedRecords(RELAY_KEYS)
    assert len(list(decided.of([*records, foreign]))) == len(records)
    with pytest.raises(ChainBroken, match="models/1/900"):
        decided.require_whole(None)
    decided.require_whole(newest)
    assert decided.foreign == [foreign]
    gap = DecidedRecords(RELAY_KEYS)
    assert list(gap.of([*records[:1], *records[2:]])) == [_claim(records[0])] * ("signature" in records[0].headers)
    with pytest.raises(ChainBroken):
        gap.require_whole(newest)


class _Reading:
    """A reader of records that a test made."""

    def __init__(self, by_partition: dict[tuple[str, int], list[Record]]) -> None:
        self._by_partition = by_partition

    def read(self, topic: str, *_from_and_to: Any) -> list[Record]:
        return [r for (t, _), rs in self._by_partition.items() if t == topic for r in rs]

    def end_offsets(self, topic: str) -> dict[tuple[str, int], int]:
        return {(topic, p): len(self._by_partition.get((topic, p), ())) for p in range(TOPICS[topic].partitions)}

    settings = settings_with_keys()


def test_a_decided_record_that_cannot_be_read_stops_the_fold(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 5, random.Random(5))
    decoded_heartbeat = Heartbeat.from_record(heartbeat, RELAY_KEYS)
    assert decoded_heartbeat is not None
    bad = _signed(_stranger(("models", 1), 99, _after(by_partition["models", 1][-1], 999), b"garbage"))
    later = Heartbeat("s", 999, {**decoded_heartbeat.sent, "models/1": 999}, 2)
    fold_runner = _fold_runner(codec, RecordingFold())
    records = [*(r for rs in by_partition.values() for r in rs), bad, heartbeat_record(later)]
    with pytest.raises(Undecodable, match="not_framed"):
        _feed(fold_runner, records)
    assert fold_runner.position == 0


def test_a_slow_clock_does_not_make_an_old_heartbeat_fresh(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without contact to the log accepts revoked keys for as long as it counts as fresh (K5)."""
    by_partition, heartbeat = _log(codec, 5, random.Random(6))
    here, elapsed = time.time() - 600, time.monotonic()  # ten minutes slow
    monkeypatch.setattr(time, "time", lambda: here)
    monkeypatch.setattr(time, "monotonic", lambda: elapsed)
    fold_runner = _fold_runner(codec, RecordingFold())
    _feed(fold_runner, [r for rs in by_partition.values() for r in rs] + [replace(heartbeat, timestamp=round((here + 600) * 1000))])
    assert fold_runner.age_s() == 0
    here, elapsed = here + 61, elapsed + 61
    assert fold_runner.age_s() == pytest.approx(61)


def test_a_heartbeat_that_arrives_late_does_not_count_as_fresh(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 5, random.Random(7))
    fold_runner = _fold_runner(codec, RecordingFold())
    _feed(fold_runner, [r for rs in by_partition.values() for r in rs] + [replace(heartbeat, timestamp=round((time.time() - 300) * 1000))])
    assert 299 < fold_runner.age_s() < 310
