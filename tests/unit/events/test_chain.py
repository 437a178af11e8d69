"""However decided records reach a fold, it applies each exactly once, in the store's order, or waits (K1, K4)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.store.rebuild import add_record
from events.log.chain import Chain, ChainCheck, ChainPosition, chain_position_of
from events.log.fold_runner import FoldRunner
from events.log.heartbeat import Heartbeat
from events.log.record import Coordinate, Record
from events.log.signature import signed_headers
from events.schema.codec import Codec, Undecodable
from projections.bills.bill_from_log import decided_facts
from tests.support.todays_codec import RELAY_KEY, RELAY_KEYS, SCHEMA_ID_MIN, SETUP_KEY, heartbeat_record, settings_with_keys

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


def _log(codec: Codec, count: int, rng: random.Random) -> tuple[dict[tuple[str, int], list[Record]], Record]:
    """`count` decided facts spread over two topics, chained per partition, and the heartbeat after them."""
    by_partition: dict[tuple[str, int], list[Record]] = {}
    last: dict[tuple[str, int], int] = {}
    base = {"event_id": "e", "occurred_at": 1, "producer": "p", "version": 1, "by": "u", "reason": ""}
    for opening, tp in enumerate([(t, p) for t in ("models", "accounts") for p in range(4)], start=1):
        value = codec.encode_dict("StoreOpened", base | {"store": "s", "previous_store": "", "previous_position": 0}, tp[0])
        last[tp] = opening
        by_partition[tp] = [Record(*tp, 0, 0, b"s", value, ChainPosition("s", opening, 0).headers | {"ce_type": b"StoreOpened"})]
    for position in range(OPENINGS + 1, OPENINGS + count + 1):
        topic, name = rng.choice([("models", "ModelRetired"), ("accounts", "ApiKeyRevoked")])
        tp = (topic, rng.randrange(4))
        subject = str(position - OPENINGS)
        value = codec.encode_dict(name, base | {"model": subject, "tenant": subject, "key_id": "k"})
        chain_position = ChainPosition("s", position, last.get(tp, 0))
        last[tp] = position
        by_partition[tp].append(Record(*tp, len(by_partition[tp]), 0, b"k", value, chain_position.headers))
    heartbeat = Heartbeat("s", OPENINGS + count, {f"{t}/{p}": n for (t, p), n in last.items()}, 1)
    return by_partition, heartbeat_record(heartbeat)


def _fold_runner(codec: Codec, fold: RecordingFold, alarm: Callable[[str, str], None] | None = None) -> FoldRunner:
    return FoldRunner(settings_with_keys(), codec, "log", ("models", "accounts"), fold, name="test", alarm=alarm)


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


def test_a_record_of_another_store_is_not_taken() -> None:
    chain = Chain("a", 5)
    assert chain.check(ChainPosition("b", 6, 5)) is ChainCheck.WAIT
    assert chain.check(ChainPosition("b", 6, 0), opened=("a", 4)) is ChainCheck.WAIT
    assert chain.check(ChainPosition("b", 6, 0), opened=("a", 5)) is ChainCheck.NEXT
    chain.advance(ChainPosition("b", 6, 0))
    assert chain.check(ChainPosition("a", 5, 4)) is ChainCheck.COPY
    assert chain.check(ChainPosition("a", 7, 5)) is ChainCheck.WAIT


@given(st.dictionaries(st.sampled_from(["store", "position", "previous", "x"]), st.binary(max_size=8)))
def test_malformed_headers_are_no_chain_position(headers: dict[str, bytes]) -> None:
    chain_position = chain_position_of(headers)
    assert chain_position is None or {"store", "position", "previous"} <= set(headers)


def _signed(value: bytes) -> Record:
    return Record("heartbeats", 0, 0, 1, b"s", value, signed_headers(RELAY_KEY, "heartbeats", b"s", value))


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_malformed_bytes_are_no_heartbeat(value: bytes) -> None:
    assert Heartbeat.from_record(_signed(value), RELAY_KEYS) is None


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
    assert Heartbeat.from_record(_signed(value), RELAY_KEYS) is None


def test_a_position_that_no_store_can_have_is_no_chain_position() -> None:
    assert chain_position_of({"store": b"s", "position": b"1", "previous": b"0"}) == ChainPosition("s", 1, 0)
    for position, previous in ((b"9223372036854775808", b"0"), (b"1", b"9223372036854775808"), (b"-1", b"0"), (b"1", b"-1")):
        assert chain_position_of({"store": b"s", "position": position, "previous": previous}) is None


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


def test_what_the_relay_never_sent_is_set_aside_and_named_and_the_fold_goes_on(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 10, random.Random(8))
    decoded = Heartbeat.from_record(heartbeat, RELAY_KEYS)
    assert decoded is not None
    forged = [
        Record("models", 0, 900 + n, 0, b"k", b"x", ChainPosition(store, position, previous).headers)
        for n, (store, position, previous) in enumerate([("s", 1000, 999), ("s", 77, 5), ("nobody", 3, 2), ("nobody", 1, 0)])
    ]
    alarms = list[str]()
    fold_runner = _fold_runner(codec, fold := RecordingFold(), lambda subject, message: alarms.append(f"{subject}: {message}"))
    _feed(fold_runner, [*forged, *(r for rs in by_partition.values() for r in rs), heartbeat])
    assert (len(fold.names), fold_runner.lag, alarms) == (10, 4, [])
    for number in (2, 3):
        later = heartbeat_record(replace(decoded, number=number), number)
        _feed(fold_runner, [replace(later, timestamp=1_000_000 + number)])
    assert (fold_runner.lag, len(alarms)) == (0, 1)
    assert alarms[0].startswith("models/0: ") and all(str(r.coordinate) in alarms[0] for r in forged)


def test_a_start_does_not_wait_for_what_the_relay_never_sent(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 10, random.Random(8))
    decoded = Heartbeat.from_record(heartbeat, RELAY_KEYS)
    assert decoded is not None
    foreign = Record("models", 0, 900, 2_000_000, b"k", b"x", ChainPosition("s", 1000, 999).headers)
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
    foreign = Record("models", 0, 900, 0, b"k", b"x", ChainPosition("nobody", 5, 4).headers)
    fold_runner = _fold_runner(codec, RecordingFold())
    _feed(fold_runner, [records[0], foreign])
    tracker = fold_runner._trackers["models", 0]  # pyright: ignore[reportPrivateUsage]
    since = tracker.stalled_at
    assert since is not None
    _feed(fold_runner, records[1:])
    assert (tracker.stalled_at, list(tracker.waiting)) == (since, [foreign])


def test_unreadable_bytes_without_a_chain_position_are_skipped_and_counted(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 5, random.Random(4))
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    _feed(fold_runner, [Record("models", 1, 99, 0, None, b"garbage", {}), *(r for rs in by_partition.values() for r in rs), heartbeat])
    assert fold.names == ["1", "2", "3", "4", "5"]
    assert fold_runner.unreadable == 1


FAKES = {
    "garbage": b"garbage",
    "no_value": None,
    "torn": b"\x00" + SCHEMA_ID_MIN.to_bytes(4, "big") + b"\xff\xff",
    "another_fact": b"retired",
}


@pytest.mark.parametrize("fake", FAKES)
@pytest.mark.parametrize("chain_position", [ChainPosition("stranger", 999, 0), ChainPosition("s", 999, 2)])
def test_an_unreadable_store_opening_opens_no_store_and_stops_no_fold(codec: Codec, fake: str, chain_position: ChainPosition) -> None:
    by_partition, heartbeat = _log(codec, 20, random.Random(6))
    body = {"event_id": "e", "occurred_at": 1, "producer": "p", "version": 1, "by": "u", "reason": "", "model": "m"}
    value = codec.encode_dict("ModelRetired", body) if fake == "another_fact" else FAKES[fake]
    records = by_partition["models", 1]
    foreign = Record("models", 1, 900, 0, b"k", value, chain_position.headers | {"ce_type": b"StoreOpened"})
    alarms: list[str] = []
    fold_runner = _fold_runner(codec, fold := RecordingFold(), lambda subject, message: alarms.append(f"{subject} {message}"))
    rest = [r for tp, rs in by_partition.items() if tp != ("models", 1) for r in rs]
    _feed(fold_runner, [*records[:1], foreign, *records[1:], *rest, heartbeat])
    assert fold.names == [str(n) for n in range(1, 21)]
    assert (fold_runner.unreadable, fold_runner.lag) == (1, 0)
    assert len(alarms) == 1 and "models/1/900" in alarms[0]

    # The same record before the other readers of the chain: bills from the log, and the rebuild of a store.
    topics = {("models", 1): [*records[:1], foreign, *records[1:]]}
    assert [f.position for f in decided_facts(_Reading(topics), codec, "models")] == [  # type: ignore[arg-type]
        p.position for r in records if (p := chain_position_of(r.headers))
    ]
    events: dict[int, Any] = {}
    chain = Chain()
    for record in topics["models", 1]:
        add_record(record, codec, chain, events)
    assert sorted(events) == [p.position for r in records if (p := chain_position_of(r.headers))]


def test_an_opening_of_a_schema_not_known_yet_waits_for_a_program_that_knows_it(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 20, random.Random(6))
    newer = Record(
        "models", 1, 900, 0, b"k", b"\x00\x7f\x00\x00\x00...", ChainPosition("next", 999, 0).headers | {"ce_type": b"StoreOpened"}
    )
    fold_runner = _fold_runner(codec, fold := RecordingFold())
    _feed(fold_runner, [*(r for rs in by_partition.values() for r in rs), newer, heartbeat])
    assert fold.names == [str(n) for n in range(1, 21)]
    assert fold_runner.lag == 1, "a snapshot past it would never see it again"


class _Reading:
    """A reader of records that a test made."""

    def __init__(self, by_partition: dict[tuple[str, int], list[Record]]) -> None:
        self._by_partition = by_partition

    def read(self, topic: str, **_: Any) -> list[Record]:
        return [r for (t, _), rs in self._by_partition.items() if t == topic for r in rs]


def test_a_decided_record_that_cannot_be_read_stops_the_fold(codec: Codec) -> None:
    by_partition, heartbeat = _log(codec, 5, random.Random(5))
    decoded_heartbeat = Heartbeat.from_record(heartbeat, RELAY_KEYS)
    chain_position = chain_position_of(by_partition["models", 1][-1].headers)
    assert chain_position is not None and decoded_heartbeat is not None
    bad = Record("models", 1, 99, 0, None, b"garbage", ChainPosition("s", 999, chain_position.position).headers)
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
