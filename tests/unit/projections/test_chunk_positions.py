"""Where a worker reads each of its partitions, while the group changes its mind (K6, K8)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from faust.tables.recovery import RebalanceAgain
from faust.types import TP

from events.process.settings import Settings
from projections.ingest.chunks import ChunkWorker
from projections.ingest.sink import Chunk

USAGE = [TP("usage", p) for p in range(4)]


class Table:
    """A sink whose `resume` takes as long as the test says, and knows how many ask it at once."""

    topic, rows_max, wait_s = "usage", 1000, 0.01

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.at_once = self.at_once_most = 0
        self.meanwhile: Callable[[], None] = lambda: time.sleep(0.01)
        self._lock = threading.Lock()

    def resume(self, partition: int) -> int:
        with self._lock:
            self.at_once += 1
            self.at_once_most = max(self.at_once, self.at_once_most)
            self.asked.append(partition)
        self.meanwhile()
        with self._lock:
            self.at_once -= 1
        return 100 + partition

    def prepare(self, chunks: list[Chunk]) -> Any:
        return chunks

    def write(self, prepared: Any) -> None:
        return None


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def worker(tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> ChunkWorker:
    for cls, name in ((GroupCoordinator, "_do_heartbeat"), (CoordinatorGroupRebalance, "_send_sync_group_request")):
        monkeypatch.setattr(cls, name, getattr(cls, name))  # a worker listens in on them: not after the test
    return ChunkWorker(Settings(data=tmp_path), "group", "member", [table])


def test_two_who_ask_at_once_take_a_partition_over_once(worker: ChunkWorker, table: Table) -> None:
    async def both() -> list[dict[Any, int]]:
        return list(await asyncio.gather(worker.positions_of(set(USAGE)), worker.positions_of(set(USAGE))))

    everywhere = {tp: 100 + tp.partition for tp in USAGE}
    assert asyncio.run(both()) == [everywhere, everywhere]
    assert table.asked == [0, 1, 2, 3]


def test_a_question_that_was_given_up_is_answered_before_the_next_is_asked(worker: ChunkWorker, table: Table) -> None:
    async def given_up() -> dict[Any, int]:
        first = asyncio.create_task(worker.positions_of(set(USAGE[:1])))
        await asyncio.sleep(0.005)
        first.cancel()
        return await worker.positions_of(set(USAGE[:1]))

    table.meanwhile = lambda: time.sleep(0.05)
    assert asyncio.run(given_up()) == {USAGE[0]: 100}
    assert table.asked == [0, 0] and table.at_once_most == 1, "the older fence must not be the last one kept"


def test_partitions_taken_away_meanwhile_are_neither_kept_nor_asked_for(worker: ChunkWorker, table: Table) -> None:
    table.meanwhile = lambda: worker.forget(set(USAGE))
    with pytest.raises(RebalanceAgain):
        asyncio.run(worker.positions_of(set(USAGE)))
    assert table.asked == [0] and worker.next == {}


def test_who_was_shut_out_of_a_partition_that_is_no_longer_its_own_goes_on(worker: ChunkWorker, table: Table) -> None:
    def taken_over() -> None:
        worker.forget(set(USAGE))
        raise RuntimeError("FENCED")

    table.meanwhile = taken_over
    with pytest.raises(RebalanceAgain):
        asyncio.run(worker.positions_of(set(USAGE)))
