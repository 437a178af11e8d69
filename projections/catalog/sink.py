"""Writes a topic into `history_rows`: every record, a decided one in its chain's order, with what it changed of its key's document.

The table is the position and the state (K6): on assignment the chain and the first missing offset are read from it, and of documents what
the next records look at. A record that nothing proves stays without a row, so that a restart finds it again; after 30 s it is an alert.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from events.facts.topics import DECIDED_TOPICS
from events.log.chain import STALLED_S_MAX, Chain
from events.log.client import LogUnavailable, Reader
from events.log.heartbeat import SeenHeartbeat, is_covered, newest_heartbeats, relay_keys, sent_since
from events.log.record import Coordinate, LogRecord
from events.log.schemas import setup_keys
from events.schema.codec import Codec
from projections.catalog.document_cache import DocumentCache
from projections.catalog.parts import Parts
from projections.catalog.record_alerts import AWAY, StallAlerts
from projections.catalog.rows import OBSERVED_KEPT, WAITING_MAX, PartitionFold
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import Chunk, DeadLetter, PublishDeadLetters
from projections.ingest.table_offsets import first_missing

logger = logging.getLogger(__name__)
TABLE = "history_rows"
ASK_S = 5.0
"""Between two looks at the heartbeats while records wait."""
INSERT_BYTES_MAX = 16 << 20
"""Of texts in one insert; a row has at most two or three times the megabyte that a record may have."""
_NEWEST_PARTS = """
SELECT key, part, argMax(state, step) AS state FROM history_parts
WHERE topic = {topic:String} AND kafka_partition = {partition:Int32} AND key IN {keys:Array(String)}
    AND ({all:Bool} OR part = '' OR part IN {names:Array(String)})
GROUP BY key, part HAVING state != '' ORDER BY max(step)
"""
HISTORY_TOPICS = (*DECIDED_TOPICS, "alerts", "schemas")
"""What a worker folds into it. The last two are observed only, so that a foreign record there gets a dead letter, too; `usage` and
`dead-letters` have tables of their own, and heartbeats are no facts (K5)."""


@dataclass(slots=True)
class _Batch:
    """Rows ready to be written, and the fence and the range that each partition of them brings."""

    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    dead: list[DeadLetter] = field(default_factory=list[DeadLetter])
    fences: dict[int, str] = field(default_factory=dict[int, str])
    token: list[str] = field(default_factory=list[str])
    changed: list[tuple[DocumentCache, list[str]]] = field(default_factory=list[tuple[DocumentCache, list[str]]])
    """Keys whose documents these rows change, with the cache that keeps them until then: a partition may come back with another."""


class HistorySink:
    """One of `HISTORY_TOPICS`. `publish_dead_letters` makes dead letters durable before it returns; `ensure_member` ends a
    process that may no longer be the owner."""

    rows_max = 5_000
    wait_s = 0.02
    """People wait to see what they decided; a part per 20 ms at most is what a merge tree digests easily."""

    def __init__(
        self,
        topic: str,
        codec: Codec,
        clickhouse: ClickHouse,
        reader: Reader,
        publish_dead_letters: PublishDeadLetters,
        ensure_member: Callable[[], None],
        stalls: StallAlerts,
    ) -> None:
        self.topic = topic
        self._codec, self._clickhouse, self._reader = codec, clickhouse, reader
        self._publish_dead_letters, self._ensure_member = publish_dead_letters, ensure_member
        self._alerts = stalls
        self._folds: dict[int, PartitionFold] = {}
        self._fences: dict[int, str] = {}
        self._stalls: dict[int, tuple[int, threading.Timer]] = {}
        """Partition → the first offset that waits, and what says so after 30 s."""
        self._heartbeats = Reader(reader.settings, f"{topic}-heartbeats")  # `reader` serves the thread of `resume`
        self._seen: list[SeenHeartbeat] = []
        self._ask_again = 0.0

    # --- the three verbs of a sink

    def resume(self, partition: int) -> int:
        self._watch(partition, None)
        fence = f"{TABLE}/{self.topic}/{partition}:{time.time_ns() // 1_000_000}"
        where = "topic = {topic:String} AND kafka_partition = {partition:Int32}"
        params: dict[str, object] = {"topic": self.topic, "partition": partition}
        offset = first_missing(self._clickhouse, self._reader, TABLE, self.topic, partition, where=where, params=params, fence=fence)
        self._folds[partition], self._fences[partition] = self._restore(partition, offset, where, params), fence
        return offset

    def prepare(self, chunks: list[Chunk]) -> _Batch:
        batch = _Batch()
        for chunk in chunks:
            fold = self._folds[chunk.partition]
            for record in chunk.records:
                fold.take(record, dict(record.headers))
            rows, dead = fold.fold()
            batch.rows += rows
            batch.dead += dead
            if fold.waiting:
                self._set_aside_foreign(chunk.partition, fold, batch)
            batch.fences[chunk.partition] = self._fences[chunk.partition]
            batch.token.append(f"{chunk.partition}:{chunk.records[0].offset}-{chunk.records[-1].offset}@{fold.step}")
            batch.changed.append((fold.documents, fold.documents.take_changed()))
            self._watch(chunk.partition, fold)
        return batch

    def write(self, prepared: _Batch) -> None:
        if prepared.dead:
            self._publish_dead_letters(prepared.dead)
        token, fence = f"{TABLE}/{self.topic}/{','.join(prepared.token)}", ",".join(prepared.fences.values())
        for number, rows in enumerate(_by_bytes(prepared.rows)):
            self._ensure_member()
            self._clickhouse.insert_rows(TABLE, rows, fence, f"{token}/{number}")
        for documents, keys in prepared.changed:
            documents.release(keys)

    def _set_aside_foreign(self, partition: int, fold: PartitionFold, batch: _Batch) -> None:
        """What waits and was not sent by the relay, by what its heartbeats name: asked for now and then, when a record comes."""
        if time.monotonic() >= self._ask_again or fold.waiting > WAITING_MAX:
            self._ask_again = time.monotonic() + ASK_S
            try:
                self._seen = newest_heartbeats(self._heartbeats)
            except LogUnavailable as e:
                logger.warning("%s: nobody knows yet what waits there: %s", self.topic, e)
        newest = self._seen[0].heartbeat if self._seen else None
        if newest is not None and is_covered(newest, self.topic, partition, fold.chain):
            rows, dead = fold.set_aside_older(sent_since(self._seen))
            batch.rows += rows
            batch.dead += dead
        fold.require_bounded()

    # --- what the table knows

    def _restore(self, partition: int, offset: int, where: str, params: dict[str, object]) -> PartitionFold:
        rows = self._clickhouse.rows
        settings = self._reader.settings
        chain = Chain[LogRecord](relay_keys(settings))
        documents = DocumentCache(self.topic, partial(newest_parts, self._clickhouse, self.topic, partition))
        fold = PartitionFold(
            self.topic, partition, self._codec, chain, documents, setup_keys(settings) if self.topic == "schemas" else None
        )
        created = f"SELECT head FROM {TABLE} WHERE {where} AND fact = 'LogCreated' AND head != '' ORDER BY step LIMIT 1"
        for r in rows(created, params) if self.topic == "schemas" else []:
            fold.created = json.loads(r["head"])
        chained = f"SELECT store, position, chain_sha256 FROM {TABLE} WHERE {where} AND chain_sha256 != '' ORDER BY step DESC LIMIT 1"
        for r in rows(chained, params):
            chain.store, chain.position, chain.sha256 = str(r["store"]), int(r["position"]), bytes.fromhex(str(r["chain_sha256"]))
        fold.step = int(self._clickhouse.value(f"SELECT max(step) FROM {TABLE} WHERE {where}", params))
        past = f"SELECT DISTINCT kafka_offset FROM {TABLE} WHERE {where} AND kafka_offset > {{offset:Int64}}"
        fold.stored = {int(r["kafka_offset"]) for r in rows(past, {**params, "offset": offset})}
        seen = f"SELECT event_id FROM {TABLE} WHERE {where} AND kind = 'observed' ORDER BY step DESC LIMIT {OBSERVED_KEPT}"
        fold.observed = OrderedDict((str(r["event_id"]), None) for r in reversed(rows(seen, params)))
        return fold

    # --- gaps

    def _watch(self, partition: int, fold: PartitionFold | None) -> None:
        """A record that waits for 30 s is not one that was overtaken: say so once. `fold`: None when the partition is new here."""
        first = fold.first_waiting if fold is not None else None
        known, timer = self._stalls.get(partition, (None, None))
        if timer is not None and known != first:
            timer.cancel()
            del self._stalls[partition]
        if fold is not None and first is not None and known != first:
            message = (
                f"nothing proves this record, nor {fold.waiting - 1} behind it: position {fold.chain.position} of store {fold.chain.store}"
            )
            self._start_timer(STALLED_S_MAX, Coordinate(self.topic, partition, first), f"{message} is the last one that is proven")

    def _start_timer(self, after_s: float, at: Coordinate, message: str) -> None:
        timer = threading.Timer(after_s, self._stalled, (at, f"{at}: {message}"))
        timer.daemon = True
        self._stalls[at.partition] = at.offset, timer
        timer.start()

    def _stalled(self, at: Coordinate, message: str) -> None:
        logger.error("%s", message)
        while self._stalls.get(at.partition, (None, None))[0] == at.offset:
            try:
                self._alerts.raise_(at, message)
                return
            except AWAY as e:
                logger.warning("the alert about %s is not on the log yet: %s", at, e)
                time.sleep(ASK_S)


def newest_parts(
    clickhouse: ClickHouse, topic: str, partition: int, keys: Sequence[str], names: Sequence[str] | None
) -> Mapping[str, Parts]:
    """As `Load` asks for them."""
    loaded: dict[str, Parts] = {}
    given = {"topic": topic, "partition": partition, "keys": keys, "names": names or [], "all": names is None}
    for r in clickhouse.rows(_NEWEST_PARTS, given, {"select_sequential_consistency": 1}):
        loaded.setdefault(r["key"], {})[r["part"]] = json.loads(r["state"])
    return loaded


def _by_bytes(rows: Sequence[dict[str, Any]]) -> Generator[Sequence[dict[str, Any]]]:
    """In their order, in pieces of about INSERT_BYTES_MAX: the size of one is bounded by that of a row, whatever came in one chunk."""
    start = size = 0
    for end, row in enumerate(rows):
        own = len(row["body"]) + len(row["head"]) + sum(map(len, row["parts"].values()))
        if size + own > INSERT_BYTES_MAX and end > start:
            yield rows[start:end]
            start, size = end, 0
        size += own
    if rows[start:]:
        yield rows[start:]
