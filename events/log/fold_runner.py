"""Keeps an in-memory fold of decided topics: in the store's own order, complete up to the newest heartbeat, and never further (K4, K5).

The relay writes several topics and partitions; each has its own chain. A heartbeat says how far every chain was at one moment.
Once all of them are seen that far, everything up to the heartbeat's position is applied in position order: rules that need two
topics always see a state that existed. Observed facts of the same topics are applied right after the decided fact before them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from events.facts.topics import FACTS, TOPICS
from events.log import snapshot as snapshots
from events.log.chain import STALLED_S_MAX, Chain, ChainCheck, Heartbeat, chain_position_of
from events.log.chain_check import check_chain
from events.log.client import LogMismatch, LogUnavailable, Reader
from events.log.record import Coordinate, Record
from events.process.settings import Settings
from events.schema.codec import Codec, Undecodable

logger = logging.getLogger(__name__)

FRESH_S_MAX = 5.0
SNAPSHOT_S = 60.0
SLICE_PAUSE_S = 0.005
"""Between two slices of a snapshot the process does its work: a million keys are written in two seconds, and no call notices."""
HEARTBEATS_KEPT = 10_000
"""Heartbeats waiting for their records: at 20 a second eight minutes; older ones are dropped, the newest is what counts."""
HEARTBEAT = ("heartbeats", 0)
TP = tuple[str, int]


class Fold(Protocol):
    """What a follower feeds. All calls come from its one thread."""

    code_version: str
    """Changes whenever an old snapshot would no longer be this code's state."""

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        """`body["position"]` of a decided fact is its place in the store; observed ones say what their writer knew."""
        ...

    def dump(self) -> bytes | Iterable[bytes]:
        """The state of this moment; slices of it are asked for later, in another thread, while `apply` goes on."""
        ...

    def load(self, state: bytes) -> None:
        """Takes all slices as one. Whatever it raises, it has taken nothing then."""
        ...


@dataclass(slots=True)
class _Lane:
    """One partition: its chain, what waits for its predecessor, and since when."""

    chain: Chain
    next_offset: int
    waiting: deque[Record]
    stalled_at: float | None = None


_Due = tuple[int, int, int, str, int, bytes | None]
"""(position, 0 decided | 1 observed, offset, topic, partition, frame): sorts into the order of application. Nothing else, since
a start holds a million: of plain values Python's collector forgets a tuple, decoded ones it would visit again and again."""


class FoldRunner:
    """Runs the fold in a thread. `alarm(subject, message)` is called once when a chain has stalled for 30 s."""

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        log_id: str,
        topics: Sequence[str],
        fold: Fold,
        *,
        name: str,
        snapshot: Path | None = None,
        snapshot_s: float = SNAPSHOT_S,
        alarm: Callable[[str, str], None] | None = None,
    ) -> None:
        self._settings, self._codec, self._log_id, self._fold = settings, codec, log_id, fold
        self._topics, self._name, self._snapshot, self._snapshot_s = tuple(topics), name, snapshot, snapshot_s
        self._alarm = alarm or _log_alarm
        self._lanes: dict[TP, _Lane] = {(t, p): _Lane(Chain(), 0, deque()) for t in topics for p in range(TOPICS[t].partitions)}
        self._due: list[_Due] = []
        self._beats: deque[tuple[Heartbeat, int]] = deque(maxlen=HEARTBEATS_KEPT)
        self._position = 0
        self._fresh_ms = 0
        self._captured: dict[TP, int] = {}
        self._caught_up = False
        self._stop = threading.Event()
        self._ready = threading.Event()
        self.failure: BaseException | None = None
        self.unreadable = 0
        self._snapped = time.monotonic()
        self._saved: dict[str, Any] = {}
        """Where the fold stood in the last snapshot."""
        self._saving: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run_guarded, name=f"follow-{name}", daemon=True)

    # --- what others ask

    @property
    def position(self) -> int:
        """Every decided fact up to here is applied."""
        return self._position

    @property
    def caught_up(self) -> bool:
        """Past the ends captured at start. Says nothing about the age."""
        return self._caught_up

    @property
    def store(self) -> str:
        """The newest store seen on any partition; empty before the first."""
        return max((lane.chain for lane in self._lanes.values()), key=lambda c: c.position).store

    def age_s(self) -> float:
        """Age of the newest heartbeat whose records are all applied; the clock of the broker's append time."""
        return max(0.0, time.time() - self._fresh_ms / 1000) if self._fresh_ms else float("inf")

    @property
    def ready(self) -> bool:
        return self._caught_up and self.failure is None and self.age_s() <= FRESH_S_MAX

    @property
    def lag(self) -> int:
        """Records read and not yet applied."""
        return len(self._due) + sum(len(lane.waiting) for lane in self._lanes.values())

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stop.set()
        for thread in (self._thread, self._saving):
            if thread is not None and thread.is_alive():
                thread.join(timeout_s)

    def wait_caught_up(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not self._ready.wait(0.05):
            if self.failure is not None:
                raise self.failure
            if time.monotonic() > end:
                return False
        return True

    # --- the thread

    def _run_guarded(self) -> None:
        try:
            self._run()
        except BaseException as e:  # the owner asks for `failure`; a fold that stopped must never look alive
            logger.exception("fold %s stopped", self._name)
            self.failure = e

    def _run(self) -> None:
        reader = Reader(self._settings, f"follow-{self._name}")
        try:
            self._restore()
            self._captured = self._ends(reader)
            beats_from = max(0, self._captured.pop(HEARTBEAT) - 50)
            for tp, lane in self._lanes.items():
                if lane.next_offset > self._captured[tp]:
                    raise LogMismatch(
                        f"{tp[0]}/{tp[1]} ends at {self._captured[tp]}, before the {lane.next_offset} this fold has seen: another log"
                    )
            reader.assign({**{tp: lane.next_offset for tp, lane in self._lanes.items()}, HEARTBEAT: beats_from})
            while not self._stop.is_set():
                for record in reader.poll(5000, 0.1):
                    self._take(record)
                self._apply_fresh()
                self._watch_stalls()
                self._maybe_snapshot()
        finally:
            reader.close()

    def _ends(self, reader: Reader) -> dict[TP, int]:
        while True:
            try:
                return reader.end_offsets(*self._topics, HEARTBEAT[0])
            except LogUnavailable as e:
                if self._stop.wait(0.5):
                    raise
                logger.warning("waiting for Kafka: %s", e)

    def _take(self, record: Record) -> None:
        tp = (record.topic, record.partition)
        if tp == HEARTBEAT:
            heartbeat = Heartbeat.from_json(record.value)
            if heartbeat is not None:
                self._beats.append((heartbeat, record.timestamp))
            return
        lane = self._lanes[tp]
        lane.next_offset = record.offset + 1
        lane.waiting.append(record)
        while lane.waiting and self._try(lane, lane.waiting[0]):
            lane.waiting.popleft()
            lane.stalled_at = None
        if len(lane.waiting) > 1:
            head = lane.waiting[0]
            self._overtake(lane)
            if not lane.waiting or lane.waiting[0] is not head:
                lane.stalled_at = None  # what overtakes a record that waits does not make its wait shorter
        if lane.waiting and lane.stalled_at is None:
            lane.stalled_at = time.monotonic()

    def _overtake(self, lane: _Lane) -> None:
        """A record that waits for a later one in the same partition (two relays crossed): take whatever fits, in any order."""
        progress = True
        while progress:
            progress = False
            for record in list(lane.waiting):
                if self._try(lane, record):
                    lane.waiting.remove(record)
                    progress = True

    def _try(self, lane: _Lane, record: Record) -> bool:
        """True when the record is dealt with: taken, a copy, an observed fact, or garbage that is no part of the chain."""
        chain_position = chain_position_of(record.headers)
        if chain_position is None:
            try:
                name, _ = self._codec.decode(record.value)
            except Undecodable as e:
                self.unreadable += 1
                logger.warning("skipped an unreadable record without a place in the chain at %s: %s", record.coordinate, e)
                return True
            entry = FACTS.get(name)
            if entry is None or entry.cls.kind != "observed" or entry.topic != record.topic:
                # A decided fact counts only in its chain: else a copy without headers would give a revoked key back.
                self.unreadable += 1
                logger.warning("skipped %s at %s: it has no place in the chain of this topic", name, record.coordinate)
                return True
            self._due.append((lane.chain.position, 1, record.offset, record.topic, record.partition, record.value))
            return True
        match check_chain(lane.chain, self._codec, chain_position, record.headers, record.value):
            case ChainCheck.COPY:
                return True
            case ChainCheck.WAIT:
                return False
            case ChainCheck.UNREADABLE:
                self.unreadable += 1
                self._alarm(
                    f"{record.topic}/{record.partition}",
                    f"fold {self._name} set {record.coordinate} aside: it claims to open store {chain_position.store}, and nobody can read it",
                )
                return True
            case ChainCheck.NEXT:
                lane.chain.advance(chain_position)
                self._due.append((chain_position.position, 0, record.offset, record.topic, record.partition, record.value))
                return True

    def _apply_fresh(self) -> None:
        """Applies everything up to the newest heartbeat whose records have all been seen."""
        found = next((i for i in range(len(self._beats) - 1, -1, -1) if self._seen(self._beats[i][0])), None)
        if found is None:
            return
        for _ in range(found):  # older ones say nothing more
            self._beats.popleft()
        heartbeat, at_ms = self._beats.popleft()
        due = sorted(d for d in self._due if d[0] <= heartbeat.position)
        for position, observed, offset, topic, partition, frame in due:
            name, body = self._codec.decode(frame)  # Undecodable stops the fold: it skips nothing
            if not observed:
                body["position"] = position
            self._fold.apply(name, body, Coordinate(topic, partition, offset))
        if due:
            self._due = [d for d in self._due if d[0] > heartbeat.position]
        self._position, self._fresh_ms = max(self._position, heartbeat.position), at_ms
        if not self._caught_up and all(
            self._lanes[tp].next_offset >= end and not self._lanes[tp].waiting for tp, end in self._captured.items()
        ):
            self._caught_up = not self._due
            if self._caught_up:
                self._ready.set()

    def _seen(self, heartbeat: Heartbeat) -> bool:
        for (topic, partition), lane in self._lanes.items():
            position = heartbeat.sent.get(f"{topic}/{partition}", 0)
            if lane.chain.position < position or (position and lane.chain.store != heartbeat.store):
                return False
            if lane.chain.store and not position:
                return False  # a relay speaks of every partition of its store: this is somebody else's, or from before its opening
        return True

    def _watch_stalls(self) -> None:
        for (topic, partition), lane in self._lanes.items():
            if lane.stalled_at is not None and time.monotonic() - lane.stalled_at > STALLED_S_MAX:
                lane.stalled_at = float("inf")  # said once; cleared when the chain goes on
                first = chain_position_of(lane.waiting[0].headers)
                self._alarm(
                    f"{topic}/{partition}",
                    f"fold {self._name} waits at position {lane.chain.position} of store {lane.chain.store}; the next record is {first}",
                )

    # --- snapshots

    def _maybe_snapshot(self) -> None:
        if self._snapshot is None or time.monotonic() - self._snapped < self._snapshot_s or self.lag or not self._caught_up:
            return
        if self._saving is not None and self._saving.is_alive():
            return
        self._snapped = time.monotonic()
        stood = self._stands()
        if stood["lanes"] == self._saved.get("lanes"):  # only heartbeats came
            return
        # The fold must go on meanwhile: a key that is revoked now must stop within two seconds (K5).
        work = (self._snapshot, stood, self._state(), SLICE_PAUSE_S)
        self._saving = threading.Thread(target=self._save, args=work, name=f"snapshot-{self._name}", daemon=True)
        self._saving.start()

    def _save(self, path: Path, stood: dict[str, Any], state: Iterable[bytes], pause_s: float) -> None:
        try:
            snapshots.write(path, stood, state, pause_s)
            self._saved = stood
        except Exception:  # a full disk costs the next start its time, and nothing else
            logger.exception("the snapshot of %s was not written", self._name)

    def save(self) -> None:
        """Writes the snapshot now. Only after `stop`, and only when nothing waits."""
        assert self._snapshot is not None and not self.lag
        snapshots.write(self._snapshot, self._stands(), self._state())

    def _state(self) -> Iterable[bytes]:
        state = self._fold.dump()
        return (state,) if isinstance(state, bytes) else state

    def _stands(self) -> dict[str, Any]:
        lanes = {
            f"{t}/{p}": [lane.next_offset, lane.chain.store, lane.chain.position, dict(lane.chain.earlier_stores)]
            for (t, p), lane in self._lanes.items()
        }
        return {"code": self._fold.code_version, "log_id": self._log_id, "position": self._position, "lanes": lanes}

    def _restore(self) -> None:
        """Takes the snapshot if it is of this log and this code; a broken or foreign one is ignored, the log has it all."""
        if self._snapshot is None or not self._snapshot.exists():
            return
        try:
            head, state = snapshots.read(self._snapshot)
            if (
                head["code"] != self._fold.code_version
                or head["log_id"] != self._log_id
                or set(head["lanes"]) != {f"{t}/{p}" for t, p in self._lanes}
            ):
                logger.info("snapshot of %s is of other code or another log: folding from the start", self._name)
                return
            found: dict[TP, _Lane] = {}
            for t, p in self._lanes:
                offset, store, position, earlier_stores = head["lanes"][f"{t}/{p}"]
                found[t, p] = _Lane(Chain(str(store), int(position), dict(earlier_stores)), int(offset), deque())
            reached = int(head["position"])
            self._fold.load(state)
            self._lanes, self._position, self._saved = found, reached, head
        except Exception as e:  # whatever a strange state provokes: a fold that died of it would die of it at each start
            logger.warning("snapshot of %s is unreadable (%s: %s): folding from the start", self._name, type(e).__name__, e)


def _log_alarm(subject: str, message: str) -> None:
    logger.error("%s: %s", subject, message)
