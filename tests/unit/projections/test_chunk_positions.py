"""The offsets from which a worker reads its partitions while the consumer group rebalances (K6, K8)."""

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
        monkeypatch.setattr(cls, name, getattr(cls, name))  # a worker wraps both: undone after the test
    return ChunkWorker(Settings(data=tmp_path), "group", "member", [table])


def test_two_concurrent_requests_take_a_partition_over_once(worker: ChunkWorker, table: Table) -> None:
    async def both() -> list[dict[Any, int]]:
        return list(await asyncio.gather(worker.positions_of(set(USAGE)), worker.positions_of(set(USAGE))))

    everywhere = {tp: 100 + tp.partition for tp in USAGE}
    assert asyncio.run(both()) == [everywhere, everywhere]
    assert table.asked == [0, 1, 2, 3]


def test_an_abandoned_request_ends_before_the_next_one_begins(worker: ChunkWorker, table: Table) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def abandoned() -> dict[Any, int]:
        first = asyncio.create_task(worker.positions_of(set(USAGE[:1])))
        await asyncio.to_thread(begun.wait, 10)
        first.cancel()
        cancelled.set()
        return await worker.positions_of(set(USAGE[:1]))

    def until_cancelled() -> None:
        begun.set()
        cancelled.wait(10)
        time.sleep(0.05)  # a second request that did not wait for this one would begin now

    table.meanwhile = until_cancelled
    assert asyncio.run(abandoned()) == {USAGE[0]: 100}
    assert table.asked == [0, 0] and table.at_once_most == 1, "the older fence must not be the last one kept"


def test_partitions_revoked_during_the_request_are_neither_kept_nor_asked_for(worker: ChunkWorker, table: Table) -> None:
    table.meanwhile = lambda: worker.forget(set(USAGE))
    with pytest.raises(RebalanceAgain):
        asyncio.run(worker.positions_of(set(USAGE)))
    assert table.asked == [0] and worker.next == {}


def test_a_worker_that_is_fenced_out_of_a_partition_it_no_longer_owns_goes_on(worker: ChunkWorker, table: Table) -> None:
    def taken_over() -> None:
        worker.forget(set(USAGE))
        raise RuntimeError("FENCED")

    table.meanwhile = taken_over
    with pytest.raises(RebalanceAgain):
        asyncio.run(worker.positions_of(set(USAGE)))
