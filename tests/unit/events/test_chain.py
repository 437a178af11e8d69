"""However decided records reach a fold, it applies each exactly once, in the store's order, or waits (K1, K4)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.store.rebuild import take
from events.facts.fact import Coordinate
from events.log.chain import Chain, Heartbeat, Place, Verdict, place_of
from events.log.client import Record
from events.log.fold_runner import Follower
from events.process.settings import Settings
from events.schema.codec import Codec, Schema, SchemaBook, Undecodable, todays_schemas
from projections.bills.bill_from_log import decided_facts

OPENINGS = 8


@dataclass
class Seen:
    code_version: str = "1"
    names: list[str] = field(default_factory=list)

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        if name != "StoreOpened":
            self.names.append(body["model"] if "model" in body else body["tenant"])

    def dump(self) -> bytes:
        return "\n".join(self.names).encode()

    def load(self, state: bytes) -> None:
        self.names = state.decode().split("\n")


@pytest.fixture(scope="module")
def codec() -> Codec:
    book = SchemaBook()
    for schema_id, (subject, definition) in enumerate(sorted(todays_schemas().items()), start=100):
        book.add(Schema.of(schema_id, subject, definition))
    return Codec(book)


def _log(codec: Codec, count: int, rng: random.Random) -> tuple[dict[tuple[str, int], list[Record]], Record]:
    """`count` decided facts spread over two topics, chained per partition, and the heartbeat after them."""
    lanes: dict[tuple[str, int], list[Record]] = {}
    last: dict[tuple[str, int], int] = {}
    base = {"event_id": "e", "occurred_at": 1, "producer": "p", "version": 1, "by": "u", "reason": ""}
    for opening, tp in enumerate([(t, p) for t in ("models", "accounts") for p in range(4)], start=1):
        value = codec.encode_dict("StoreOpened", base | {"store": "s", "previous_store": "", "previous_position": 0}, tp[0])
        last[tp] = opening
        lanes[tp] = [Record(*tp, 0, 0, b"s", value, Place("s", opening, 0).headers | {"ce_type": b"StoreOpened"})]
    for position in range(OPENINGS + 1, OPENINGS + count + 1):
        topic, name = rng.choice([("models", "ModelRetired"), ("accounts", "ApiKeyRevoked")])
        tp = (topic, rng.randrange(4))
        subject = str(position - OPENINGS)
        value = codec.encode_dict(name, base | {"model": subject, "tenant": subject, "key_id": "k"})
        place = Place("s", position, last.get(tp, 0))
        last[tp] = position
        lanes[tp].append(Record(*tp, len(lanes[tp]), 0, b"k", value, place.headers))
    beat = Heartbeat("s", OPENINGS + count, {f"{t}/{p}": n for (t, p), n in last.items()})
    return lanes, Record("heartbeats", 0, 0, 1, None, beat.to_json(), {})


def _follower(codec: Codec, fold: Seen, alarm: Callable[[str, str], None] | None = None) -> Follower:
    return Follower(Settings(), codec, "log", ("models", "accounts"), fold, name="test", alarm=alarm)


def _feed(follower: Follower, records: list[Record]) -> None:
    for record in records:
        follower._take(record)  # pyright: ignore[reportPrivateUsage]
    follower._apply_fresh()  # pyright: ignore[reportPrivateUsage]


def test_a_thousand_relative_orders_of_the_partitions_give_one_state(codec: Codec) -> None:
    rng = random.Random(1)
    lanes, beat = _log(codec, 40, rng)
    for _ in range(1000):
        fold, queues = Seen(), {tp: list(rs) for tp, rs in lanes.items()}
        order: list[Record] = []
        while queues:
            tp = rng.choice(list(queues))
            order.append(queues[tp].pop(0))
            if not queues[tp]:
                del queues[tp]
        order.insert(rng.randrange(len(order) + 1), beat)  # a heartbeat may arrive before what it speaks of
        _feed(_follower(codec, fold), order)
        assert fold.names == [str(n) for n in range(1, 41)]


def test_copies_and_crossed_relays_change_nothing(codec: Codec) -> None:
    rng = random.Random(2)
    lanes, beat = _log(codec, 60, rng)
    for _ in range(200):
        fold, order = Seen(), list[Record]()
        for records in lanes.values():
            twice = records + [rng.choice(records) for _ in range(10)]
            rng.shuffle(twice)
            order += twice
        _feed(_follower(codec, fold), [*order, beat])
        assert fold.names == [str(n) for n in range(1, 61)]


def test_nothing_is_applied_past_a_missing_record(codec: Codec) -> None:
    lanes, beat = _log(codec, 30, random.Random(3))
    tp = next(tp for tp, rs in lanes.items() if len(rs) >= 3)
    gone = lanes[tp].pop(1)
    follower = _follower(codec, fold := Seen())
    _feed(follower, [r for rs in lanes.values() for r in rs] + [beat])
    assert fold.names == []  # the heartbeat speaks of a record that is not there: the state before it stays
    assert follower.lag > 0
    _feed(follower, [gone, beat])
    assert fold.names == [str(n) for n in range(1, 31)]


def test_a_record_of_another_store_is_not_taken() -> None:
    chain = Chain("a", 5)
    assert chain.judge(Place("b", 6, 5)) is Verdict.WAITS
    assert chain.judge(Place("b", 6, 0), opened=("a", 4)) is Verdict.WAITS
    assert chain.judge(Place("b", 6, 0), opened=("a", 5)) is Verdict.NEXT
    chain.take(Place("b", 6, 0))
    assert chain.judge(Place("a", 5, 4)) is Verdict.COPY
    assert chain.judge(Place("a", 7, 5)) is Verdict.WAITS


@given(st.dictionaries(st.sampled_from(["store", "position", "previous", "x"]), st.binary(max_size=8)))
def test_strange_headers_are_no_place(headers: dict[str, bytes]) -> None:
    place = place_of(headers)
    assert place is None or {"store", "position", "previous"} <= set(headers)


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_strange_bytes_are_no_heartbeat(value: bytes) -> None:
    assert Heartbeat.from_json(value) is None


@pytest.mark.parametrize(
    "value",
    [
        b'{"store":"s","position":1e999,"sent":{}}',
        b'{"store":"s","position":1,"sent":{"models/0":1e999}}',
        b'{"store":"s","position":9223372036854775808,"sent":{}}',
        b'{"store":"s","position":-1,"sent":{}}',
        b"[" * 100_000,
    ],
)
def test_json_that_is_no_heartbeat_stops_nobody(value: bytes) -> None:
    assert Heartbeat.from_json(value) is None


def test_a_position_no_store_can_have_is_no_place() -> None:
    assert place_of({"store": b"s", "position": b"1", "previous": b"0"}) == Place("s", 1, 0)
    for position, previous in ((b"9223372036854775808", b"0"), (b"1", b"9223372036854775808"), (b"-1", b"0"), (b"1", b"-1")):
        assert place_of({"store": b"s", "position": position, "previous": previous}) is None


def test_a_decided_fact_without_a_place_is_not_applied(codec: Codec) -> None:
    lanes, beat = _log(codec, 20, random.Random(6))
    again = [Record(r.topic, r.partition, 900 + i, 0, r.key, r.value, {}) for i, r in enumerate(r for rs in lanes.values() for r in rs)]
    follower = _follower(codec, fold := Seen())
    _feed(follower, [*(r for rs in lanes.values() for r in rs), *again, beat])
    assert fold.names == [str(n) for n in range(1, 21)]
    assert follower.unreadable == len(again)


def test_an_observed_fact_of_another_topic_is_not_applied(codec: Codec) -> None:
    lanes, beat = _log(codec, 3, random.Random(7))
    body = {"event_id": "e", "occurred_at": 1, "producer": "p", "subject": "s", "rule": "r", "raised": "e", "model": "m"}
    stray = Record("models", 0, 900, 0, None, codec.encode_dict("AlertResolved", body), {})
    follower = _follower(codec, fold := Seen())
    _feed(follower, [*(r for rs in lanes.values() for r in rs), stray, beat])
    assert fold.names == ["1", "2", "3"]


def test_a_heartbeat_that_leaves_out_a_partition_is_not_believed(codec: Codec) -> None:
    lanes, beat = _log(codec, 10, random.Random(8))
    forged = Record("heartbeats", 0, 1, 1, None, Heartbeat("s", 1 << 60, {}).to_json(), {})
    follower = _follower(codec, fold := Seen())
    _feed(follower, [*(r for rs in lanes.values() for r in rs), beat, forged])
    assert (follower.position, len(fold.names)) == (OPENINGS + 10, 10)


def test_what_overtakes_a_waiting_record_does_not_hide_how_long_it_waits(codec: Codec) -> None:
    lanes, _ = _log(codec, 40, random.Random(9))
    records = lanes["models", 0]
    assert len(records) >= 4
    stray = Record("models", 0, 900, 0, b"k", b"x", Place("nobody", 5, 4).headers)
    follower = _follower(codec, Seen())
    _feed(follower, [records[0], stray])
    lane = follower._lanes["models", 0]  # pyright: ignore[reportPrivateUsage]
    since = lane.stalled_at
    assert since is not None
    _feed(follower, records[1:])
    assert (lane.stalled_at, list(lane.waiting)) == (since, [stray])


def test_garbage_without_a_place_is_skipped_and_counted(codec: Codec) -> None:
    lanes, beat = _log(codec, 5, random.Random(4))
    follower = _follower(codec, fold := Seen())
    _feed(follower, [Record("models", 1, 99, 0, None, b"garbage", {}), *(r for rs in lanes.values() for r in rs), beat])
    assert fold.names == ["1", "2", "3", "4", "5"]
    assert follower.unreadable == 1


FAKES = {
    "garbage": b"garbage",
    "no_value": None,
    "torn": b"\x00\x00\x00\x00\x64\xff\xff",
    "another_fact": b"retired",
}


@pytest.mark.parametrize("fake", FAKES)
@pytest.mark.parametrize("place", [Place("stranger", 999, 0), Place("s", 999, 2)])
def test_an_opening_that_nobody_can_read_opens_nothing_and_ends_nothing(codec: Codec, fake: str, place: Place) -> None:
    lanes, beat = _log(codec, 20, random.Random(6))
    body = {"event_id": "e", "occurred_at": 1, "producer": "p", "version": 1, "by": "u", "reason": "", "model": "m"}
    value = codec.encode_dict("ModelRetired", body) if fake == "another_fact" else FAKES[fake]
    records = lanes["models", 1]
    stray = Record("models", 1, 900, 0, b"k", value, place.headers | {"ce_type": b"StoreOpened"})
    alarms: list[str] = []
    follower = _follower(codec, fold := Seen(), lambda subject, message: alarms.append(f"{subject} {message}"))
    rest = [r for tp, rs in lanes.items() if tp != ("models", 1) for r in rs]
    _feed(follower, [*records[:1], stray, *records[1:], *rest, beat])
    assert fold.names == [str(n) for n in range(1, 21)]
    assert (follower.unreadable, follower.lag) == (1, 0)
    assert len(alarms) == 1 and "models/1/900" in alarms[0]

    # The same record before the other readers of the chain: the log's supplier of bills, and whoever makes a store again.
    topics = {("models", 1): [*records[:1], stray, *records[1:]]}
    assert [f.position for f in decided_facts(_Reading(topics), codec, "models")] == [  # type: ignore[arg-type]
        p.position for r in records if (p := place_of(r.headers))
    ]
    events: dict[int, Any] = {}
    chain = Chain()
    for record in topics["models", 1]:
        take(record, codec, chain, events)
    assert sorted(events) == [p.position for r in records if (p := place_of(r.headers))]


def test_an_opening_of_a_schema_not_known_yet_waits_for_a_program_that_knows_it(codec: Codec) -> None:
    lanes, beat = _log(codec, 20, random.Random(6))
    newer = Record("models", 1, 900, 0, b"k", b"\x00\x7f\x00\x00\x00...", Place("next", 999, 0).headers | {"ce_type": b"StoreOpened"})
    follower = _follower(codec, fold := Seen())
    _feed(follower, [*(r for rs in lanes.values() for r in rs), newer, beat])
    assert fold.names == [str(n) for n in range(1, 21)]
    assert follower.lag == 1, "a snapshot past it would never see it again"


class _Reading:
    """A reader of records that a test made."""

    def __init__(self, lanes: dict[tuple[str, int], list[Record]]) -> None:
        self._lanes = lanes

    def read(self, topic: str, **_: Any) -> list[Record]:
        return [r for (t, _), rs in self._lanes.items() if t == topic for r in rs]


def test_a_decided_record_that_cannot_be_read_stops_the_fold(codec: Codec) -> None:
    lanes, beat = _log(codec, 5, random.Random(5))
    said = Heartbeat.from_json(beat.value)
    place = place_of(lanes["models", 1][-1].headers)
    assert place is not None and said is not None
    bad = Record("models", 1, 99, 0, None, b"garbage", Place("s", 999, place.position).headers)
    later = Heartbeat("s", 999, {**said.sent, "models/1": 999})
    follower = _follower(codec, Seen())
    records = [*(r for rs in lanes.values() for r in rs), bad, Record("heartbeats", 0, 0, 1, None, later.to_json(), {})]
    with pytest.raises(Undecodable, match="not_framed"):
        _feed(follower, records)
    assert follower.position == 0
