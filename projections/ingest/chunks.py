"""Faust, in chunks: a topic's records arrive a partition's batch at a time, from exactly where the sink's table ends (K6).

A `Sink` owns one topic. When a partition is assigned, `resume` says which offset its table misses first and the partition is
read from there, forward or back; group offsets are committed only for lag tools. Chunks are gathered, prepared in one thread
and written in another, in order; whatever raises ends the process, and its supervisor starts it again. A worker that the
group has not answered for too long dies rather than write late (K8).

The hooks are private parts of faust-streaming 0.15.3 and aiokafka 0.14.0; `tests/contract/projections/test_chunks.py` fails when they move.
"""

# Faust and aiokafka have no usable types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUntypedBaseClass=false, reportPrivateUsage=false
# pyright: reportIncompatibleMethodOverride=false, reportMissingTypeStubs=false, reportUnknownLambdaType=false, reportUntypedFunctionDecorator=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import faust
import mode
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from faust.auth import SASLCredentials, SSLCredentials
from faust.tables import recovery
from faust.tables.manager import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import ConsumerMessage

from events.process.json_logging import ConnectionWarnings
from events.process.passwords import kafka_sign_in
from events.process.settings import Settings
from projections.ingest.membership import DIED_FAILED, MEMBERSHIP, die, record_contact
from projections.ingest.sink import Chunk, Sink

logger = logging.getLogger(__name__)
AWAY = ("Unable ", "Error sending ", "Heartbeat ", "Group Coordinator Request ", "OffsetCommit ", "LeaveGroup ")
"""How the messages of aiokafka begin while a broker is away; a session that is over ends the process here (K8)."""
for name in ("aiokafka", "aiokafka.consumer.group_coordinator"):  # the loggers of its client and its coordinator
    logging.getLogger(name).addFilter(ConnectionWarnings(*AWAY))

FETCH_BYTES_MIN, FETCH_WAIT_MS_MAX = 1 << 18, 100
"""The broker answers with a quarter megabyte or after 100 ms: else a fetch every few ms for a handful of facts."""
PARTITION_FETCH_BYTES_MAX = 2 << 20
POLL_RECORDS_MAX = 10_000
IDLE_WAIT_S = 0.02
"""Longest a first record waits for company while nothing is being written."""
CHUNKS_WAITING_MAX = 16
"""Chunks that wait for one sink: with the chunk size it bounds the memory of a worker."""


def credentials_of(settings: Settings) -> SASLCredentials | SSLCredentials | None:
    """The settings that `events.log.client` gives librdkafka, by their names in Faust."""
    sign_in = kafka_sign_in(settings)
    context = ssl.create_default_context(cafile=settings.kafka_ca_file or None) if sign_in.protocol.endswith("SSL") else None
    if sign_in.mechanism:
        return SASLCredentials(username=sign_in.username, password=sign_in.password, ssl_context=context, mechanism=sign_in.mechanism)
    return SSLCredentials(context) if context is not None else None


# --- the transport: one message of Faust = a chunk of one partition


class _Thread(driver.AIOKafkaConsumerThread):
    logger = driver.logger

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_min_bytes, consumer._fetch_max_wait_ms = FETCH_BYTES_MIN, FETCH_WAIT_MS_MAX
        return consumer

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return {tp: [records] for tp, records in (await super()._fetch_records(*args, **kwargs)).items() if records}


class _Consumer(driver.Consumer):
    logger = driver.logger

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: Any, records: Any) -> Any:
        last = records[-1]
        at = (last.topic, last.partition, last.offset, last.timestamp / 1000.0, last.timestamp_type)
        content = (last.headers, last.key, records, last.checksum, 0, 0, tp)
        return ConsumerMessage(*at, *content, generation_id=self.app.consumer_generation_id)

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Chunks are acknowledged whole and in order: there are no gaps to remember."""

    def _new_offset(self, tp: Any) -> int | None:
        acked = self._acked[tp]
        if not acked:
            return None
        last = max(acked)
        self._acked_index[tp].difference_update(acked)
        acked.clear()
        return int(last) + 1

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Not to the committed offsets: to where the tables end (K6)."""
        worker = cast("_ChunkApp", self.app).chunk_worker
        positions = await worker.positions_of(self.assignment())
        if positions:
            await self._thread.seek_wait(positions)
        # For Faust the chunk before the position is what was read last; None = nothing yet.
        return positions

    async def on_partitions_revoked(self, revoked: Any) -> None:
        cast("_ChunkApp", self.app).chunk_worker.forget(revoked)
        await super().on_partitions_revoked(revoked)


class _Transport(driver.Transport):
    Consumer = _Consumer


class _ChunkApp(faust.App):
    logger = driver.logger
    chunk_worker: ChunkWorker


class _NoTables(TableManager):
    async def on_start(self) -> None:
        """At once: the base waits a second for tables to be declared."""
        await self._update_channels()
        await self.recovery.start()


class _Worker(faust.Worker):
    """Its end: all is stopped and committed then, and the base waits up to two seconds more for tasks that it then cancels."""

    def _gather_all(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    async def _sentinel_task(self) -> None:
        pass


# --- the worker: every sink in one Faust app


class ChunkWorker:
    """A Faust worker that feeds sinks. `member` names it to the group for ever, so that its successor need not wait for the session to end."""

    def __init__(self, settings: Settings, group: str, member: str, sinks: Sequence[Sink]) -> None:
        self.sinks = {s.topic: s for s in sinks}
        if len(self.sinks) != len(sinks):
            raise ValueError("two sinks on one topic: a partition has one position")
        self.next: dict[Any, int] = {}
        """(topic, partition) → the offset that the next chunk must bring; only of partitions that are ours."""
        self.seeks_done = False
        self._resuming, self._resumer, self._revocations = asyncio.Lock(), ThreadPoolExecutor(1, "resume"), 0
        MEMBERSHIP.session_s, MEMBERSHIP.contact_at = settings.worker_session_s, time.monotonic()
        record_contact(GroupCoordinator, "_do_heartbeat", bool)
        # A join may wait for the others without a heartbeat: its answer is contact too.
        record_contact(CoordinatorGroupRebalance, "_send_sync_group_request", lambda answer: answer is not None)
        self.app = self._make_app(settings, group, member)
        for sink in sinks:
            self._add(sink)

    def run(self) -> None:
        """Until a signal or a failure; raises SystemExit."""
        worker = _Worker(self.app, loglevel="WARNING", quiet=True, override_logging=False, redirect_stdouts=False)
        worker.execute_from_commandline()

    def state(self) -> dict[str, Any]:
        """For `events.process.health.serve_health`. Lag = records appended but not yet taken, over this worker's partitions."""
        if not self.seeks_done:
            return {"status": "starting", "lag": None}
        if (silent := time.monotonic() - MEMBERSHIP.contact_at) > MEMBERSHIP.session_s:
            return {"status": "starting", "lag": None, "detail": f"the group has not answered for {silent:.0f} s: is Kafka away?"}
        lag, parts = 0, dict(self.next)
        for tp, offset in parts.items():
            try:
                lag += max(0, int(self.app.consumer.highwater(tp) or 0) - offset)
            except Exception:  # a partition just taken away has no high-water mark
                continue
        return {"status": "ready", "lag": lag, "partitions": [f"{tp.topic}/{tp.partition}" for tp in sorted(parts)]}

    async def positions_of(self, assigned: set[Any]) -> dict[Any, int]:
        """Where to read each assigned partition: new ones from where the table ends, the others where reading stands."""
        loop, asked = asyncio.get_running_loop(), self._revocations
        # Faust asks from two places when a rebalance interrupts a fetch. One at a time: a worker that asks for a partition
        # again while the first request is under way takes it over from itself, and is rejected by its own fence.
        async with self._resuming:
            for tp in sorted(assigned - self.next.keys()):
                self._check_ours(asked)
                try:
                    first = await loop.run_in_executor(self._resumer, self.sinks[tp.topic].resume, tp.partition)
                except Exception as e:
                    self._check_ours(asked)
                    logger.exception("the table cannot say where to read %s/%s on", tp.topic, tp.partition)
                    die(DIED_FAILED, f"{tp.topic}/{tp.partition}: {type(e).__name__}: {e}")
                self._check_ours(asked)
                self.next[tp] = first
            self._check_ours(asked)
            self.seeks_done = True
            return {tp: self.next[tp] for tp in assigned}

    def _check_ours(self, revocations: int) -> None:
        """Raises when partitions were revoked since: we must not fence out their new owner."""
        if revocations != self._revocations:
            raise recovery.RebalanceAgain

    def forget(self, revoked: set[Any]) -> None:
        self._revocations += 1
        for tp in revoked:
            self.next.pop(tp, None)

    def _make_app(self, settings: Settings, group: str, member: str) -> _ChunkApp:
        folder = settings.folder / "workers" / member
        folder.mkdir(parents=True, exist_ok=True)
        app = _ChunkApp(
            group,
            broker=f"kafka://{settings.kafka}",
            broker_credentials=credentials_of(settings),
            store="memory://",
            datadir=str(folder),
            value_serializer="raw",
            key_serializer="raw",
            agent_supervisor=mode.CrashingSupervisor,
            broker_session_timeout=settings.worker_session_s,
            broker_heartbeat_interval=min(1.0, settings.worker_session_s / 6),
            broker_commit_interval=1.0,
            broker_max_poll_records=POLL_RECORDS_MAX,
            consumer_max_fetch_size=PARTITION_FETCH_BYTES_MAX,
            consumer_group_instance_id=member,
            stream_buffer_maxsize=8,
            topic_disable_leader=True,
            topic_allow_declare=False,
            web_enabled=False,
            TableManager=_NoTables,
            consumer_auto_offset_reset="earliest",
        )
        app.chunk_worker = self
        app.transport = _Transport(app.conf.broker, app)
        return app

    def _add(self, sink: Sink) -> None:
        pipeline = _SinkPipeline(self, sink)

        @self.app.agent(self.app.topic(sink.topic, key_serializer="raw", value_serializer="raw"), name=f"sink-{sink.topic}", concurrency=1)
        async def agent(stream: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            waiting: asyncio.Queue[Any] = asyncio.Queue(CHUNKS_WAITING_MAX)
            task = asyncio.create_task(pipeline.run(waiting))
            task.add_done_callback(_fatal)
            async for event in stream.noack().events():
                await waiting.put(event)


def _fatal(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("a sink failed", exc_info=error)
        die(DIED_FAILED, f"{type(error).__name__}: {error}")


class _SinkPipeline:
    """One sink's chunks: gather → prepare (thread) → write (thread); one write at a time, the next prepared meanwhile."""

    def __init__(self, worker: ChunkWorker, sink: Sink) -> None:
        self._worker, self._sink = worker, sink
        self._preparer = ThreadPoolExecutor(1, f"{sink.topic}-prepare")
        self._writer = ThreadPoolExecutor(1, f"{sink.topic}-write")

    async def run(self, waiting: asyncio.Queue[Any]) -> None:
        loop, writing = asyncio.get_running_loop(), None
        while True:
            events = await self._gather(waiting, writing)
            chunks = [chunk for event in events if (chunk := self._take(event)) is not None]
            prepared = await loop.run_in_executor(self._preparer, self._sink.prepare, chunks) if chunks else None
            if writing is not None:
                await writing
            writing = asyncio.create_task(self._write(events, prepared))
            writing.add_done_callback(_fatal)

    async def _gather(self, waiting: asyncio.Queue[Any], writing: asyncio.Task[None] | None) -> list[Any]:
        """What may go in one write. The engine idle: only what is there, for a fetch brings all partitions at once and company comes with
        the next. The engine busy: as much as comes meanwhile, up to `wait_s`, since the next write must wait anyway."""
        loop, events = asyncio.get_running_loop(), [await waiting.get()]
        rows, began = len(events[0].message.value), asyncio.get_running_loop().time()
        while rows < self._sink.rows_max:
            idle = writing is None or writing.done()
            left = began + (min(IDLE_WAIT_S, self._sink.wait_s) if idle else self._sink.wait_s) - loop.time()
            if waiting.empty() and left <= 0:
                break
            try:
                event = waiting.get_nowait() if not waiting.empty() else await asyncio.wait_for(waiting.get(), min(left, IDLE_WAIT_S))
            except TimeoutError:
                continue
            events.append(event)
            rows += len(event.message.value)
        return events

    def _take(self, event: Any) -> Chunk | None:
        """The part of a fetched chunk that is due; None when the partition is no longer ours or all of it was taken before."""
        tp, records = event.message.tp, event.message.value
        due = self._worker.next.get(tp)
        if due is None or records[-1].offset < due:
            return None
        if records[0].offset < due:
            records = [r for r in records if r.offset >= due]
        first, last = records[0].offset, records[-1].offset
        assert first == due and last - first == len(records) - 1, (
            f"{tp.topic}/{tp.partition}: due {due}, came {first}…{last}, {len(records)} records"
        )
        self._worker.next[tp] = last + 1
        return Chunk(tp.topic, tp.partition, records)

    async def _write(self, events: list[Any], prepared: Any) -> None:
        if prepared is not None:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._sink.write, prepared)
        for event in events:
            event.ack()
