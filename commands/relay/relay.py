"""The relay: `python -m commands.relay.relay`. Sends what the store decided to Kafka, in the store's order, each record with the hash of its predecessor.

It encodes nothing and remembers nothing (K3, K4): the frames are the store's, the position is the log's own tail. It may be
killed at any time. On the first delivery error it ends, and the next relay continues from the tail.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from commands.relay.lock import LockLost, RelayLock
from commands.relay.resume import TP, OwnRecords, Sent, StoreMismatch, read_tails, resume, start_after
from commands.store.event_store import QUOTA_EVENT, Event, Store, StoreUnavailable, open_store
from commands.store.generation import StoreGeneration, current_generation
from commands.store.stored_record import unpack
from events.log.chain import ChainPosition
from events.log.client import LogBroken, LogMismatch, LogUnavailable, Reader, Writer
from events.log.heartbeat import TOPIC as HEARTBEATS
from events.log.heartbeat import Heartbeat, newest_heartbeats, relay_keys
from events.log.record import Coordinate
from events.log.sign_in import LogDenied
from events.log.topic_admin import check_partitions
from events.process.clock import now_us
from events.process.health import serve_health
from events.process.json_logging import start_logging
from events.process.settings import Settings
from events.process.signing_keys import KeyMissing, SigningKey, signing_key

logger = logging.getLogger(__name__)

BATCH_MAX = 200
"""Records sent before any is waited for: at 512 KiB each the writer's queue still holds them."""
IDLE_S = 0.02
"""How often an idle store is asked for more: SQLite cannot call us. 0.2 % of a core."""
HEARTBEAT_S = 1.0
HEARTBEAT_S_MIN = 0.05
"""Not more than 20 heartbeats a second, however small the batches."""
INTRODUCED_S_MAX = 3600.0
"""How long a partition that got no record remembers this producer. Kafka's own bound (`producer.id.expiration.ms`) is a day."""
UNACKNOWLEDGED_S_MAX = 5.0
"""Waiting longer than this for Kafka shows as not ready."""
WAIT_S = 0.5


@dataclass(slots=True)
class Progress:
    """What the health page shows; written by the thread of the relay alone."""

    status: str = "starting"
    message: str = ""
    store: str = ""
    position: int = 0
    newest: int = 0
    sent: dict[TP, Sent] = field(default_factory=dict[TP, Sent])
    oldest_wait_s: float = 0.0

    def to_json(self) -> Mapping[str, Any]:
        stuck = self.status == "ready" and self.oldest_wait_s > UNACKNOWLEDGED_S_MAX
        return {
            "status": "failed" if stuck else self.status,
            "message": "Kafka does not acknowledge" if stuck else self.message,
            "lag": max(0, self.newest - self.position),
            "store": self.store,
            "position": self.position,
        }


class Relay:
    """Runs in the caller's thread until `stop` is set. Its creation raises LogMismatch without the relay's key. Raises StoreMismatch,
    LogBroken, LogMismatch, LogDenied, StoreUnavailable, and whatever `check_lock` raises, which is called before anything is sent."""

    def __init__(self, settings: Settings, store: Store, stop: threading.Event, check_lock: Callable[[], None] = lambda: None) -> None:
        self._settings, self._store, self._stop, self._check_lock = settings, store, stop, check_lock
        self._acknowledged: dict[TP, float] = {}
        """When each partition last acknowledged a record of this relay, by the monotonic clock."""
        self._key = _own_key(settings)
        self.progress = Progress()

    def run(self) -> None:
        generation = self._wait_for_generation()
        if generation is None:
            return
        reader = Reader(self._settings, "relay")
        try:
            sent, position, number = self._starting_point(reader, generation)
        finally:
            reader.close()
        self.progress.store, self.progress.sent, self.progress.position = generation.store, sent, position
        logger.info("relaying", extra={"store": generation.store, "after_position": position})
        writer, flush_s = Writer(self._settings, "relay"), 0.0
        try:
            self._relay(writer, generation, number)
            flush_s = 5.0
        finally:
            writer.close(flush_s)  # after an error the records in the queue are dropped: the next relay sends them, from the tail

    def _wait_for_generation(self) -> StoreGeneration | None:
        """Waits for a store that was opened. None when stopped."""
        while not self._stop.is_set():
            generation = current_generation(self._store)
            if generation is not None:
                return generation
            self.progress.message = "the store is empty; the command API opens it"
            self._stop.wait(WAIT_S)
        return None

    def _starting_point(self, reader: Reader, generation: StoreGeneration) -> tuple[dict[TP, Sent], int, int]:
        """The end of each partition, the position to go on after, and the number of the last heartbeat."""
        while True:
            try:
                seen = newest_heartbeats(reader)
                newest = seen[0].heartbeat if seen else None
                own = OwnRecords(self._store, generation, relay_keys(self._settings), newest, self._key.key_id)
                sent = resume(own, read_tails(reader, own.is_newest))
                return sent, start_after(own, sent), newest.number if newest else 0
            except LogUnavailable as e:
                self.progress.message = str(e)
                if self._stop.wait(WAIT_S):
                    raise

    def _relay(self, writer: Writer, generation: StoreGeneration, number: int) -> None:
        heartbeats = _Heartbeats(writer, self._key, generation.store, self.progress, number)
        self.progress.newest = self._store.last_position()
        self.progress.status, self.progress.message = "ready", ""
        while not self._stop.is_set():
            events = self._store.notifications(self.progress.position, BATCH_MAX)
            if events or heartbeats.due():
                self._check_lock()
            if events:
                self._send(writer, generation, events)
            self.progress.newest = self.progress.position if len(events) < BATCH_MAX else self._store.last_position()
            self.progress.oldest_wait_s = writer.oldest_wait_s()
            heartbeats.send_if_due(moved=bool(events))
            if writer.fatal is not None:
                raise LogBroken(str(writer.fatal))
            if len(events) < BATCH_MAX:
                self._stop.wait(IDLE_S)

    def _send(self, writer: Writer, generation: StoreGeneration, events: list[Event]) -> None:
        """Sends a batch and waits until all of it is acknowledged. Only then the position moves. The last record to each partition is signed,
        which proves those before it (`events.log.chain`); where a relay ends before it, the next one sends them once more.

        The first record to a partition is acknowledged before another follows it. A partition that knows nothing of a producer takes any
        sequence number from it: were the first refused, the second, already on its way, would be written behind a gap (K4).
        """
        heads = dict(self.progress.sent)
        futures: dict[Future[Coordinate], TP] = {}
        decided = [(event.position, unpack(event.state)) for event in events if event.name != QUOTA_EVENT]
        last = {(stored.topic, stored.partition): position for position, stored in decided}
        for position, stored in decided:
            tp = (stored.topic, stored.partition)
            if position <= heads[tp].position:
                continue  # it is on the log: sent by the relay before this one, and maybe not yet in a heartbeat
            at = ChainPosition(generation.store, position, heads[tp].sha256)
            heads[tp] = Sent(position, at.sha256(stored.key, stored.frame))
            proof = at.signed_headers(self._key, *tp, heads[tp].sha256) if position == last[tp] else at.headers
            headers = {**stored.headers, **proof}
            future = writer.append(stored.topic, stored.key, stored.frame, headers, stored.partition)
            futures[future] = tp
            if not self._introduced(tp):
                self._await(writer, {future: tp}, position)
                if self._stop.is_set():
                    return
        self._await(writer, futures, events[-1].position)
        if not self._stop.is_set():
            self.progress.sent, self.progress.position = heads, events[-1].position

    def _introduced(self, tp: TP) -> bool:
        at = self._acknowledged.get(tp)
        return at is not None and time.monotonic() - at < INTRODUCED_S_MAX

    def _await(self, writer: Writer, futures: Mapping[Future[Coordinate], TP], newest: int) -> None:
        pending = set(futures)
        while pending and not self._stop.is_set():
            done, pending = wait(pending, WAIT_S, FIRST_EXCEPTION)
            for future in done:
                future.result()  # LogBroken: the first delivery error ends the relay
                self._acknowledged[futures[future]] = time.monotonic()
            self.progress.newest, self.progress.oldest_wait_s = max(self.progress.newest, newest), writer.oldest_wait_s()
            if pending:
                self._check_lock()


class _Heartbeats:
    """Writes how far the relay is, each second and after each batch; never more than one heartbeat waits for Kafka."""

    def __init__(self, writer: Writer, key: SigningKey, store: str, progress: Progress, number: int) -> None:
        self._writer, self._key, self._store, self._progress, self._number = writer, key, store, progress, number
        self._last = 0.0
        self._moved = True
        self._pending: Future[Coordinate] | None = None

    def due(self) -> bool:
        age = time.monotonic() - self._last
        waits = self._pending is not None and not self._pending.done()
        return not waits and age >= (HEARTBEAT_S_MIN if self._moved else HEARTBEAT_S)

    def send_if_due(self, *, moved: bool) -> None:
        self._moved = self._moved or moved
        if not self.due():
            return
        sent = {f"{topic}/{partition}": sent.position for (topic, partition), sent in self._progress.sent.items() if sent.position}
        self._number = max(self._number + 1, now_us())  # the clock too: heartbeats are kept for a day, and a relay may be away longer
        heartbeat = Heartbeat(self._store, self._progress.position, sent, self._number)
        headers = heartbeat.signed_headers(self._key)
        self._pending = self._writer.append(HEARTBEATS, heartbeat.key, heartbeat.to_json(), headers, partition=0)
        self._last, self._moved = time.monotonic(), False


def _own_key(settings: Settings) -> SigningKey:
    try:
        return signing_key(settings, "relay")
    except KeyMissing as e:
        raise LogMismatch(str(e)) from e


def run(settings: Settings, stop: threading.Event) -> None:
    """Waits for the lock, then relays until `stop`."""
    store = open_store(settings)
    lock = RelayLock(settings)
    relay = Relay(settings, store, stop, lock.check)
    health = serve_health(settings.host, settings.relay_health_port, relay.progress.to_json)
    try:
        with lock:
            while not lock.acquire():
                relay.progress.message = "another relay of this store is running; this one waits for its lock"
                if stop.wait(WAIT_S):
                    return
            _wait_for_log(settings, relay.progress, stop)
            if not stop.is_set():
                relay.run()
    finally:
        health.shutdown()
        store.close()


def _wait_for_log(settings: Settings, progress: Progress, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            check_partitions(settings)
            return
        except LogUnavailable as e:
            progress.message = str(e)
            stop.wait(WAIT_S)


def main() -> int:
    start_logging("relay")
    stop = threading.Event()

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request_stop)
    try:
        run(Settings(), stop)
    except (StoreMismatch, LogMismatch, LogDenied) as e:
        logger.error("the relay stops, nothing was sent: %s", e)
        return 2
    except (LockLost, LogBroken, LogUnavailable, StoreUnavailable) as e:
        logger.error("the relay ends and is to be started again: %s", e)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
