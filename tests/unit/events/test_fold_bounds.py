"""A fold at size: what a start holds in memory, and how much of the time goes into snapshots."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from events.log import fold_runner as module
from events.log.fold_runner import SNAPSHOT_SHARE_MAX, FoldRunner
from events.log.heartbeat import Heartbeat
from events.log.record import Coordinate, Record
from events.schema.codec import Codec
from tests.support.todays_codec import RelayedLog, heartbeat_record, settings_with_keys

SETTINGS = settings_with_keys()
TOPICS = ("models", "accounts")
PARTITIONS = [(topic, p) for topic in TOPICS for p in range(4)]


class Clock:
    """Takes the place of module `time`."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def time(self) -> float:
        return self.now_s

    monotonic = time


class SlowFold:
    """Remembers the positions that it applied; writing it takes `dump_s` of the clock."""

    code_version = "1"

    def __init__(self, clock: Clock | None = None, dump_s: float = 0.0) -> None:
        self.positions: list[int] = []
        self.dumps = 0
        self._clock, self._dump_s = clock, dump_s

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        self.positions.append(body["position"])

    def dump(self) -> Iterable[bytes]:
        self.dumps += 1
        if self._clock is not None:
            self._clock.now_s += self._dump_s
        yield b"state"

    def load(self, state: bytes) -> None:
        raise AssertionError("nothing is loaded here")


def log_of(codec: Codec, count: int, chance: random.Random) -> tuple[dict[tuple[str, int], list[Record]], Record]:
    """`count` decided facts over eight partitions, of which the last has two only; and the heartbeat after them."""
    relayed, by_partition = RelayedLog(), dict[tuple[str, int], list[Record]]()
    base = {"event_id": "e", "occurred_at": 1, "producer": "p", "version": 1, "by": "u"}
    for position, tp in enumerate(PARTITIONS, 1):
        opening = codec.encode_dict("StoreOpened", base | {"store": "s", "previous_store": "", "previous_position": 0}, tp[0])
        by_partition[tp] = [relayed.record(tp, 0, position, opening, key=b"s", headers={"ce_type": b"StoreOpened"})]
    names = {"models": "ModelRetired", "accounts": "ApiKeyRevoked"}
    for position in range(len(PARTITIONS) + 1, len(PARTITIONS) + count + 1):
        tp = PARTITIONS[-1] if position == len(PARTITIONS) + 1 else chance.choice(PARTITIONS[:-1])
        value = codec.encode_dict(names[tp[0]], base | {"model": "m", "tenant": "t", "key_id": "k", "reason": ""})
        by_partition[tp].append(relayed.record(tp, len(by_partition[tp]), position, value))
    end = len(PARTITIONS) + count
    return by_partition, heartbeat_record(Heartbeat("s", end, {f"{t}/{p}": n for (t, p), (n, _) in relayed.heads.items()}, 1))


def started(codec: Codec, fold: SlowFold, **more: Any) -> FoldRunner:
    return FoldRunner(SETTINGS, codec, "log", TOPICS, fold, name="test", **more)


def poll(fold_runner: FoldRunner, records: Iterable[Record]) -> None:
    for record in records:
        fold_runner._receive(record)  # pyright: ignore[reportPrivateUsage]
    fold_runner._apply_to_heartbeat()  # pyright: ignore[reportPrivateUsage]


def test_a_start_holds_what_is_not_certain_yet_and_not_the_log(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACCEPTED_MAX", 100)
    held: dict[int, int] = {}
    for count in (1_000, 10_000):
        by_partition, heartbeat = log_of(codec, count, random.Random(1))
        fold_runner = started(codec, fold := SlowFold())
        poll(fold_runner, [heartbeat])
        held[count] = 0
        while any(by_partition.values()):
            poll(fold_runner, [records.pop(0) for records in by_partition.values() if records])
            held[count] = max(held[count], fold_runner.lag)
        assert fold.positions == list(range(1, len(PARTITIONS) + count + 1))
        assert fold_runner.position == len(PARTITIONS) + count
    assert held[10_000] < 5 * held[1_000], "partitions run apart by chance, as the root of ten"


def test_without_waiting_for_a_heartbeat_the_order_is_the_stores(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACCEPTED_MAX", 0)
    chance = random.Random(2)
    for _ in range(100):
        by_partition, heartbeat = log_of(codec, 40, chance)
        fold_runner, queues = started(codec, fold := SlowFold()), {tp: list(records) for tp, records in by_partition.items()}
        poll(fold_runner, [heartbeat])
        while queues:
            tp = chance.choice(list(queues))
            poll(fold_runner, [queues[tp].pop(0)])
            assert fold.positions == sorted(fold.positions)
            if not queues[tp]:
                del queues[tp]
        assert fold.positions == list(range(1, len(PARTITIONS) + 41))


@pytest.mark.parametrize(("dump_s", "written_max"), [(0.1, 60), (30.0, 6), (300.0, 1)])
def test_snapshots_take_a_twentieth_of_the_time_at_most(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dump_s: float, written_max: int
) -> None:
    """An hour in which something is decided every ten seconds."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    fold = SlowFold(clock, dump_s)
    fold_runner = started(codec, fold, snapshot=tmp_path / "a.snapshot")
    fold_runner._caught_up = True  # pyright: ignore[reportPrivateUsage]
    fold_runner._partitions["models", 0].next_offset = 1  # pyright: ignore[reportPrivateUsage]
    end_s = clock.now_s + 3_600
    while clock.now_s < end_s:
        clock.now_s += 10
        fold_runner._partitions["models", 0].next_offset += 1  # pyright: ignore[reportPrivateUsage]
        fold_runner._maybe_snapshot()  # pyright: ignore[reportPrivateUsage]
        if (saving := fold_runner._saving) is not None:  # pyright: ignore[reportPrivateUsage]
            saving.join(30)
    assert 1 <= fold.dumps <= written_max
    assert fold.dumps * dump_s <= 3_600 * SNAPSHOT_SHARE_MAX + dump_s
