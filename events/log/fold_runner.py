"""Runs an in-memory fold of decided topics in the order of the store, complete up to the newest heartbeat and never further (K4, K5).

The relay writes several topics and partitions; each has its own chain. A heartbeat says how far every chain was at one moment.
When all of them are proven that far, every fact up to the heartbeat's position is applied in position order: a rule that needs two
topics always sees a state that existed. Observed facts of the same topics are applied right after the decided fact before them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from events.facts.topics import TOPICS
from events.log import snapshot as snapshots
from events.log.chain import STALLED_S_MAX
from events.log.client import LogBroken, LogMismatch, LogUnavailable, Reader
from events.log.folded_partition import STALL_REMEDY, STALLED, Accepted, Alarm, FoldedPartition
from events.log.heartbeat import FORGED_HEARTBEAT, FORGED_HEARTBEAT_REMEDY, FORGED_QUIET_S, SKEW_MS_MAX, Heartbeat, relay_keys
from events.log.record import Coordinate, Record
from events.process.settings import Settings
from events.schema.codec import Codec

logger = logging.getLogger(__name__)

FRESH_S_MAX = 5.0
SNAPSHOT_S = 60.0
SNAPSHOT_SHARE_MAX = 1 / 20
"""Of the time, that is spent writing snapshots: one that takes 30 s (ten million keys) is written every ten minutes at most."""
SLICE_PAUSE_S = 0.005
"""Pause between two slices of a snapshot, for the other threads: a million keys take two seconds, and no call is slower."""
HEARTBEATS_KEPT = 10_000
"""Heartbeats that wait for their records: eight minutes at 20 a second. Older ones are dropped; only the newest counts."""
ACCEPTED_MAX = 100_000
"""Facts that wait for a heartbeat before those whose place is certain are applied without it: some 60 MB. Only a start has more."""
NAMED_MAX = 10
"""Records that one alarm names."""
HEARTBEAT = ("heartbeats", 0)
ALARM_AGAIN_S = 5.0
"""Until an alert that Kafka did not take is tried again."""
TP = tuple[str, int]


class Fold(Protocol):
    """A state made of facts. All calls come from the one thread of its runner."""

    code_version: str
    """Changes when a snapshot of older code can no longer be loaded."""

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        """`body["position"]` of a decided fact is its position in the store; an observed one carries the position its writer knew."""
        ...

    def dump(self) -> bytes | Iterable[bytes]:
        """The state of this moment, in slices. They are read later, in another thread, while `apply` goes on."""
        ...

    def load(self, state: bytes) -> None:
        """Replaces the state by the joined slices of a snapshot. When it raises, the state is unchanged."""
        ...


class FoldRunner:
    """Runs the fold in a thread. Its creation raises LogMismatch when this process does not know the relay's key. `alarm`: of a process that
    may write to `alerts`; the log and `troubles`, for its health, say the same in any."""

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
        alarm: Alarm | None = None,
    ) -> None:
        self._settings, self._codec, self._log_id, self._fold = settings, codec, log_id, fold
        self._topics, self._name, self._snapshot, self._snapshot_s = tuple(topics), name, snapshot, snapshot_s
        self._alarm, self._alarm_from_s = alarm, 0.0
        self._relay_keys = relay_keys(settings)
        self._partitions = {(t, p): FoldedPartition(t, p, codec, self._relay_keys) for t in topics for p in range(TOPICS[t].partitions)}
        self._accepted: list[Accepted] = []
        self._accepted_max = ACCEPTED_MAX
        self._heartbeats: deque[tuple[Heartbeat, Record, float]] = deque(maxlen=HEARTBEATS_KEPT)
        self._position = 0
        self._heartbeat_ms, self._heartbeat_came_s, self._heartbeat_number = 0, 0.0, 0
        self._ends_at_start: dict[TP, int] = {}
        self._heartbeats_end = 0
        self._stalled: dict[TP, str] = {}
        """Partitions with a record that nothing proved for 30 s, and the sentence that says so."""
        self.forged_heartbeats = 0
        """Records on `heartbeats` that the relay did not sign."""
        self._forged_heartbeat, self._forged_heartbeat_s = "", time.monotonic()
        """The first one of those since the alert before was over, and when the last one came."""
        self._caught_up = False
        self._stop = threading.Event()
        self._caught_up_event = threading.Event()
        self.failure: BaseException | None = None
        self._snapshot_at, self._saving_s = time.monotonic(), 0.0
        """When the last snapshot was begun, and how long it took."""
        self._saved_head: dict[str, Any] = {}
        """The head of the last snapshot written."""
        self._saving: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run_guarded, name=f"fold-{name}", daemon=True)

    # --- what the owner asks

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
        return max((partition.chain for partition in self._partitions.values()), key=lambda c: c.position).store

    def age_s(self) -> float:
        """Age of the newest heartbeat whose records are all applied: by the broker's append time, and at least since it came here. A clock
        that is slow makes the first of the two small, and nothing else may depend on it: a process without contact to the log must not
        accept revoked keys (K5)."""
        if not self._heartbeat_ms:
            return float("inf")
        return max(time.time() - self._heartbeat_ms / 1000, time.monotonic() - self._heartbeat_came_s)

    @property
    def ready(self) -> bool:
        return self._caught_up and self.failure is None and self.age_s() <= FRESH_S_MAX

    @property
    def lag(self) -> int:
        """Records read and not yet applied."""
        return len(self._accepted) + sum(partition.lag for partition in self._partitions.values())

    @property
    def unreadable(self) -> int:
        """Records passed over: nobody can read them, or they are not what they claim to be."""
        return sum(partition.unreadable for partition in self._partitions.values())

    @property
    def troubles(self) -> list[str]:
        """What needs a person, a sentence each."""
        return list(self._stalled.values()) + [self._forged_heartbeat] * bool(self._forged_heartbeat)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stop.set()
        for thread in (self._thread, self._saving):
            if thread is not None and thread.is_alive():
                thread.join(timeout_s)

    def wait_caught_up(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not self._caught_up_event.wait(0.05):
            if self.failure is not None:
                raise self.failure
            if time.monotonic() > end:
                return False
        return True

    # --- the thread

    def _run_guarded(self) -> None:
        try:
            self._run()
        except BaseException as e:  # the owner asks for `failure`: a fold that stopped must not look ready
            logger.exception("fold %s stopped", self._name)
            self.failure = e

    def _run(self) -> None:
        reader = Reader(self._settings, f"fold-{self._name}")
        try:
            self._restore()
            self._ends_at_start = self._ends(reader)
            self._heartbeats_end = self._ends_at_start.pop(HEARTBEAT)
            heartbeats_from = max(0, self._heartbeats_end - 50)
            for tp, partition in self._partitions.items():
                if partition.next_offset > self._ends_at_start[tp]:
                    raise LogMismatch(
                        f"{tp[0]}/{tp[1]} ends at {self._ends_at_start[tp]}, before the {partition.next_offset} this fold has seen: another log"
                    )
            reader.assign({**{tp: partition.next_offset for tp, partition in self._partitions.items()}, HEARTBEAT: heartbeats_from})
            while not self._stop.is_set():
                for record in reader.poll(5000, 0.1):
                    self._receive(record)
                self._apply_to_heartbeat()
                self._note_stalls()
                self._sync_alarm()
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

    def _receive(self, record: Record) -> None:
        tp = (record.topic, record.partition)
        if tp == HEARTBEAT:
            heartbeat = Heartbeat.from_record(record, self._relay_keys)
            if heartbeat is None:
                self._note_forged_heartbeat(record)
            elif heartbeat.number > self._heartbeat_number:  # an old one written once more makes nothing fresh
                self._heartbeat_number = heartbeat.number
                self._heartbeats.append((heartbeat, record, time.monotonic()))
            return
        self._partitions[tp].receive(record)

    def _accept(self) -> None:
        for partition in self._partitions.values():
            if foreign := partition.accept(self._accepted):
                self._alarm_on_foreign(partition, foreign)

    def _apply_to_heartbeat(self) -> None:
        """Applies everything up to the newest heartbeat whose records have all been proven."""
        self._accept()
        found = next((i for i in range(len(self._heartbeats) - 1, -1, -1) if self._all_seen(self._heartbeats[i][0])), None)
        if found is None:
            if len(self._accepted) > self._accepted_max:
                self._apply_certain()
            return
        for _ in range(found):  # the newer one covers the older ones
            self._heartbeats.popleft()
        heartbeat, record, came_s = self._heartbeats.popleft()
        self._apply_to(heartbeat.position)
        self._set_aside_older(self._heartbeat_ms - SKEW_MS_MAX)
        self._position, self._heartbeat_ms, self._heartbeat_came_s = max(self._position, heartbeat.position), record.timestamp, came_s
        if not self._caught_up and all(self._partitions[tp].next_offset >= end for tp, end in self._ends_at_start.items()):
            # What waits beyond the second heartbeat after the start is not the relay's, and must not keep a process from starting.
            self._caught_up = self.lag == 0 or record.offset > self._heartbeats_end
            if self._caught_up:
                self._caught_up_event.set()

    def _apply_certain(self) -> None:
        """At a start the newest heartbeat is far away, and what came before it need not be held till then: what a partition that is behind it
        still lacks comes after all that it has, so everything up to the one that is furthest behind can be applied in order."""
        if self._heartbeats:
            heartbeat = self._heartbeats[-1][0]
            behind = [partition.chain.position for tp, partition in self._partitions.items() if not self._seen(heartbeat, tp)]
            certain = min(behind, default=0)
            self._apply_to(certain)
            self._position = max(self._position, certain)
        # Where one partition holds up the others, they are not sorted each time.
        self._accepted_max = max(ACCEPTED_MAX, 2 * len(self._accepted))

    def _apply_to(self, end: int) -> None:
        """What was accepted up to this position, in order."""
        due = sorted(d for d in self._accepted if d[0] <= end)
        for position, observed, offset, topic, partition, frame in due:
            name, body = self._codec.decode(frame)  # Undecodable stops the fold: it skips nothing
            if not observed:
                body["position"] = position
            self._fold.apply(name, body, Coordinate(topic, partition, offset))
        if due:
            self._accepted = [d for d in self._accepted if d[0] > end]

    def _set_aside_older(self, at_ms: float) -> None:
        """Called when all that a heartbeat speaks of is applied, with the append time of the one before. The relay writes one heartbeat at a
        time, and none while it sends: so this one speaks of every record of the relay that was there before the last one was. What is older
        and still waits was written by another program."""
        for partition in self._partitions.values():
            if foreign := partition.set_aside_older(at_ms):
                self._alarm_on_foreign(partition, foreign)

    def _alarm_on_foreign(self, partition: FoldedPartition, foreign: Sequence[Record]) -> None:
        """A worker meets the same records, and raises the alert with their dead letters (`projections/dead_letters`)."""
        named = ", ".join(str(record.coordinate) for record in foreign[:NAMED_MAX])
        more = f" and {len(foreign) - NAMED_MAX} more" if len(foreign) > NAMED_MAX else ""
        logger.error(
            "%s/%d: fold %s set %s%s aside: the relay did not send it", partition.topic, partition.partition, self._name, named, more
        )

    def _all_seen(self, heartbeat: Heartbeat) -> bool:
        return all(self._seen(heartbeat, tp) for tp in self._partitions)

    def _seen(self, heartbeat: Heartbeat, tp: TP) -> bool:
        position, chain = heartbeat.sent.get(f"{tp[0]}/{tp[1]}", 0), self._partitions[tp].chain
        if chain.position < position or (position and chain.store != heartbeat.store):
            return False
        # A relay reports every partition of its store: one that it leaves out is of another store, or the heartbeat is older than its opening.
        return position > 0 or not chain.store

    # --- what needs a person

    def _note_forged_heartbeat(self, record: Record) -> None:
        self.forged_heartbeats, self._forged_heartbeat_s = self.forged_heartbeats + 1, time.monotonic()
        if not self._forged_heartbeat:  # named once, however many come
            self._forged_heartbeat = f"{record.coordinate}: the relay did not sign this heartbeat; it counts for nothing"
            logger.error("fold %s: %s", self._name, self._forged_heartbeat)

    def _note_stalls(self) -> None:
        now = time.monotonic()
        for tp, partition in self._partitions.items():
            since = partition.stalled_at
            if since is None or now - since <= STALLED_S_MAX:
                if self._stalled.pop(tp, None) is not None:
                    logger.info("%s/%d: fold %s goes on", *tp, self._name)
            elif tp not in self._stalled:
                first = min(record.coordinate for record in partition.waiting)
                at = f"behind position {partition.chain.position} of store {partition.chain.store}"
                self._stalled[tp] = f"{first}: nothing proves this record for {STALLED_S_MAX:.0f} s: fold {self._name} waits {at}"
                logger.error("%s", self._stalled[tp])

    def _sync_alarm(self) -> None:
        """Raises what lasts and resolves what is over, also what an earlier process raised: what it waited for was read when nothing waits up
        to the end that the partition had at the start."""
        if self._alarm is None or time.monotonic() < self._alarm_from_s:
            return
        try:
            for tp, partition in self._partitions.items():
                subject, rule = f"{tp[0]}/{tp[1]}", f"{self._name}.{STALLED}"
                if tp in self._stalled:
                    self._alarm.raise_(subject, rule, self._stalled[tp], STALL_REMEDY)
                elif partition.stalled_at is None and partition.next_offset >= self._ends_at_start.get(tp, 0):
                    self._alarm.resolve(subject, rule)
            subject, rule = f"{HEARTBEAT[0]}/{HEARTBEAT[1]}", f"{self._name}.{FORGED_HEARTBEAT}"
            if time.monotonic() - self._forged_heartbeat_s > FORGED_QUIET_S:
                self._forged_heartbeat = ""
                self._alarm.resolve(subject, rule)
            elif self._forged_heartbeat:
                self._alarm.raise_(subject, rule, self._forged_heartbeat, FORGED_HEARTBEAT_REMEDY)
        except (LogUnavailable, LogBroken) as e:
            logger.warning("fold %s: an alert is not on the log yet: %s", self._name, e)
            self._alarm_from_s = time.monotonic() + ALARM_AGAIN_S

    # --- snapshots

    def _maybe_snapshot(self) -> None:
        pause_s = max(self._snapshot_s, self._saving_s / SNAPSHOT_SHARE_MAX)
        if self._snapshot is None or time.monotonic() - self._snapshot_at < pause_s or self.lag or not self._caught_up:
            return
        if self._saving is not None and self._saving.is_alive():
            return
        self._snapshot_at = time.monotonic()
        head = self._head()
        if head["partitions"] == self._saved_head.get("partitions"):  # only heartbeats since then
            return
        # In a thread of its own: a key that is revoked now must stop within two seconds (K5).
        work = (self._snapshot, head, self._state(), SLICE_PAUSE_S)
        self._saving = threading.Thread(target=self._save, args=work, name=f"snapshot-{self._name}", daemon=True)
        self._saving.start()

    def _save(self, path: Path, head: dict[str, Any], state: Iterable[bytes], pause_s: float) -> None:
        began = time.monotonic()
        try:
            snapshots.write(path, head, state, pause_s)
            self._saved_head = head
        except Exception:  # without a snapshot the next start takes longer, nothing else
            logger.exception("the snapshot of %s was not written", self._name)
        self._saving_s = time.monotonic() - began

    def save(self) -> None:
        """Writes the snapshot now. Only after `stop`, and only when nothing waits."""
        assert self._snapshot is not None and not self.lag
        snapshots.write(self._snapshot, self._head(), self._state())

    def _state(self) -> Iterable[bytes]:
        return (state,) if isinstance(state := self._fold.dump(), bytes) else state

    def _head(self) -> dict[str, Any]:
        partitions = {f"{t}/{p}": partition.head() for (t, p), partition in self._partitions.items()}
        return {"code": self._fold.code_version, "log_id": self._log_id, "position": self._position, "partitions": partitions}

    def _restore(self) -> None:
        """Loads the snapshot if it is of this log and this code. Any other is ignored: the log has every fact."""
        if self._snapshot is None or not self._snapshot.exists():
            return
        try:
            head, state = snapshots.read(self._snapshot)
            ours = self._fold.code_version, self._log_id, {f"{t}/{p}" for t, p in self._partitions}
            if (head["code"], head["log_id"], set(head["partitions"])) != ours:
                logger.info("snapshot of %s is of other code or another log: folding from the start", self._name)
                return
            found = {(t, p): FoldedPartition(t, p, self._codec, self._relay_keys) for t, p in self._partitions}
            for (t, p), partition in found.items():
                partition.restore(head["partitions"][f"{t}/{p}"])
            reached = int(head["position"])
            self._fold.load(state)
            self._partitions, self._position, self._saved_head = found, reached, head
        except Exception as e:  # a damaged state can raise anything; without this the process would fail at every start
            logger.warning("snapshot of %s is unreadable (%s: %s): folding from the start", self._name, type(e).__name__, e)
