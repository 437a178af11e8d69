"""One row for each record of a folded topic: what it said, and the parts of its key's document that it changed.

Dense (K6): copies, observed facts, changes of the store and unreadable records have rows too, so a missing offset is a gap and
nothing else. A record that nothing proves yet has no row (K4). Pure: the sink beside it reads and writes.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from events.facts.fact import INT64_MAX
from events.facts.log import LogCreated
from events.facts.topics import DECIDED_TOPICS, FACTS
from events.log.chain import NOT_SENT, STORE_OPENED, Chain, ChainPosition, Claim, claim_of
from events.log.record import LogRecord
from events.log.recorded_schemas import check_log, check_schema, check_signature, claimed_fact
from events.process.signing_keys import PublicKeys
from events.schema.codec import Codec, Undecodable, frame_schema_id
from projections.catalog.document import Document, plain
from projections.catalog.document_cache import NAME_CHARS_MAX, DocumentCache
from projections.catalog.documents import Misplaced, evolve
from projections.catalog.parts import HEAD, changes, looked_at
from projections.ingest.sink import DeadLetter

OBSERVED_KEPT = 100_000
"""event_ids of observed facts remembered per partition, to tell copies: hours of a busy deployment topic."""
RECENT_KEPT = 10_000
"""Decided records remembered per partition, to tell a copy from a forgery that comes behind it."""
WAITING_MAX = 10_000
"""Records held that nothing proves: past it the process stops, since something is broken for good."""

_KEYED_BY_TENANT = ("accounts", "bills")
"""Their documents belong to the tenant that their key names; others say whose they are."""

MISPLACED, NO_PLACE = "misplaced", "no_place"
"""Codes of dead letters: what is on another topic than its own, or decided and outside the relay's chain. No program of ours writes them."""

RowKind = Literal["decided", "observed", "copy", "store", "dead"]


class GapTooLong(Exception):
    """Too many records wait for a proof that does not come."""


@dataclass(slots=True)
class PartitionFold:
    """One partition of one topic: its chain where it is a decided one, what its facts change of their documents, and what nothing proves yet."""

    topic: str
    partition: int
    codec: Codec
    chain: Chain[LogRecord]
    """Of a topic without decided facts: an empty one, that stays empty."""
    documents: DocumentCache
    setup_keys: PublicKeys | None = None
    """For topic `schemas`: set-up signs what is on it."""
    created: Document | None = None
    """For topic `schemas`: what its LogCreated says, if it is folded."""
    step: int = 0
    """Rows folded so far: the order in which documents changed, which is not the order of offsets where two relays crossed."""
    stored: set[int] = field(default_factory=set[int])
    """Offsets past the first gap that have their rows already (nothing proved what stands in the gap before a restart)."""
    observed: OrderedDict[str, None] = field(default_factory=OrderedDict[str, None])
    _observed_waiting: list[LogRecord] = field(default_factory=list[LogRecord])
    _read: dict[int, tuple[str, dict[str, Any]]] = field(default_factory=dict[int, tuple[str, dict[str, Any]]])
    """Offset → what a record without a row says, if it can be read."""
    _wanted: dict[str, set[str] | None] = field(default_factory=dict[str, set[str] | None])
    """Key → the parts of its document that records without a row look at; None for all."""
    _late: list[Claim[LogRecord]] = field(default_factory=list[Claim[LogRecord]])
    _recent: OrderedDict[int, bytes] = field(default_factory=OrderedDict[int, bytes])
    """Position → hash of the decided records folded last."""

    def take(self, record: LogRecord, headers: Mapping[str, bytes]) -> None:
        """Notes the next record of the partition; `fold` makes its row."""
        if record.offset in self.stored:
            self.stored.discard(record.offset)
            return
        self._look(record)
        # Where the relay writes nothing there is no chain: headers with a chain position are not the relay's, and must not make other records wait.
        claim = claim_of(record, headers) if self.topic in DECIDED_TOPICS else None
        if claim is None:
            self._observed_waiting.append(record)
        elif not self.chain.add(claim):
            self._late.append(claim)

    def fold(self) -> tuple[list[dict[str, Any]], list[DeadLetter]]:
        """The rows of all records whose fate is certain now. Those that nothing proves wait, and the observed facts behind them.

        Raises Undecodable for a decided record that is proven and cannot be read: the fold stops, it skips nothing.
        """
        self.documents.fetch(self._wanted)
        self._wanted = {}
        rows: list[dict[str, Any]] = []
        dead: list[DeadLetter] = []
        position = self.chain.position
        proven, copies, foreign = self.chain.prove()
        first_waiting = min((c.record.offset for c in self.chain.waiting), default=INT64_MAX)
        for claim in proven:
            self._fold_observed(min(claim.record.offset, first_waiting), position, rows, dead)
            position = claim.at.position
            rows.append(self._decided(claim))
        for claim in copies:
            rows.append(self._row(claim.record, "copy", at=claim.at))
        late_copies, late_forged = self._split_late()
        rows += [self._row(claim.record, "copy", at=claim.at) for claim in late_copies]
        self._set_aside([*foreign, *late_forged], rows, dead)
        self._fold_observed(first_waiting, position, rows, dead)
        return rows, dead

    def set_aside_older(self, at_ms: float) -> tuple[list[dict[str, Any]], list[DeadLetter]]:
        """Gives up waiting for the proof of what was appended before `at_ms`: the caller knows that no relay sent it. The rows that this
        makes possible; observed facts that came behind it are among them."""
        rows: list[dict[str, Any]] = []
        dead: list[DeadLetter] = []
        self._set_aside(self.chain.set_aside_older(at_ms), rows, dead)
        more, more_dead = self.fold()
        return rows + more, dead + more_dead

    @property
    def waiting(self) -> int:
        """Records without a row."""
        return len(self.chain.waiting) + len(self._observed_waiting)

    @property
    def first_waiting(self) -> int | None:
        """Offset of the first record that nothing proves; the observed facts behind it wait for it."""
        return min((claim.record.offset for claim in self.chain.waiting), default=None)

    def require_bounded(self) -> None:
        """Raises GapTooLong."""
        if self.waiting > WAITING_MAX:
            raise GapTooLong(f"{self.topic}/{self.partition}: nothing proves {self.waiting} records behind position {self.chain.position}")

    def _look(self, record: LogRecord) -> None:
        """Reads a record as soon as it comes, to ask once for what all records of a chunk look at."""
        try:
            if frame_schema_id(record.value) not in self.codec.schemas.by_id:
                return  # `fold` looks for it on the log, when it is the record's turn
            name, body = self._read[record.offset] = self.codec.decode(record.value)
            entry = FACTS.get(name)
            if entry is None or entry.topic != self.topic:
                return
            key, names = self._looked_at(name, body)
        except Undecodable:
            return
        known = self._wanted.setdefault(key, set())
        if names is None:
            self._wanted[key] = None
        elif known is not None:
            known.update(names)

    def _looked_at(self, name: str, body: Mapping[str, Any]) -> tuple[str, tuple[str, ...] | None]:
        """The key of a fact, and the parts of its document that it needs. Raises Undecodable."""
        key, names = str(body[FACTS[name].key]), looked_at(self.topic, body)
        if longest := max((len(n) for n in (key, *(names or ())) if len(n) > NAME_CHARS_MAX), default=0):
            raise Undecodable("too_large", f"it names something with {longest} characters, more than {NAME_CHARS_MAX}")
        return key, names

    def _decode(self, record: LogRecord) -> tuple[str, dict[str, Any]]:
        return self._read.get(record.offset) or self.codec.decode(record.value)

    def _split_late(self) -> tuple[list[Claim[LogRecord]], list[Claim[LogRecord]]]:
        """What came when its position was proven already: copies, and those known to be forged."""
        late, self._late = self._late, []
        copies: list[Claim[LogRecord]] = []
        forged: list[Claim[LogRecord]] = []
        for claim in late:
            is_copy = self._recent.get(claim.at.position, claim.sha256) == claim.sha256
            (copies if is_copy else forged).append(claim)
        return copies, forged

    def _set_aside(self, foreign: list[Claim[LogRecord]], rows: list[dict[str, Any]], dead: list[DeadLetter]) -> None:
        for claim in foreign:
            rows.append(self._row(claim.record, "dead"))
            dead.append(DeadLetter(claim.record, NOT_SENT, "it claims a position in the chain of decisions, and the relay did not send it"))

    def _decided(self, claim: Claim[LogRecord]) -> dict[str, Any]:
        self._recent[claim.at.position] = claim.sha256
        if len(self._recent) > RECENT_KEPT:
            self._recent.popitem(last=False)
        name, body = self._decode(claim.record)
        if name == STORE_OPENED:
            return self._row(claim.record, "store", name, body, at=claim.at, chain_sha256=claim.sha256)
        return self._evolve(claim.record, "decided", name, body, claim.at, claim.sha256)

    def _fold_observed(self, below: int, position: int, rows: list[dict[str, Any]], dead: list[DeadLetter]) -> None:
        """Those in front of an offset, right after the decided fact with that position."""
        count = next((i for i, record in enumerate(self._observed_waiting) if record.offset >= below), len(self._observed_waiting))
        due, self._observed_waiting = self._observed_waiting[:count], self._observed_waiting[count:]
        rows += [self._observed(record, position, dead) for record in due]

    def _observed(self, record: LogRecord, position: int, dead: list[DeadLetter]) -> dict[str, Any]:
        try:
            name, body = self._decode(record)
            entry = FACTS.get(name)
            if entry is None or entry.topic != self.topic:
                raise Undecodable(MISPLACED, f"{name} does not belong on {self.topic}")
            if entry.cls.kind != "observed":
                raise Undecodable(NO_PLACE, f"{name} is decided, but this record has no place in the relay's chain")
            if self.topic == "schemas":
                self._check_schemas(record, name, body)
            if body["event_id"] in self.observed:
                return self._row(record, "copy", name, body, position=position)
            row = self._evolve(record, "observed", name, body, None, position=position)
        except (Undecodable, Misplaced) as e:
            code = e.code if isinstance(e, Undecodable) else MISPLACED
            dead.append(DeadLetter(record, code, str(e)))
            return self._row(record, "dead", position=position)
        self.observed[body["event_id"]] = None
        if len(self.observed) > OBSERVED_KEPT:
            self.observed.popitem(last=False)
        return row

    def _check_schemas(self, record: LogRecord, name: str, body: Mapping[str, Any]) -> None:
        """What every process passes over at its start is no part of the history either (K2). Raises Undecodable."""
        if claimed_fact(record) != name:
            raise Undecodable("not_signed", f"{name} without a header that says so: set-up did not write it")
        assert self.setup_keys is not None
        check_signature(record, self.setup_keys)
        if name == LogCreated.__name__:
            check_log(body, self.created)
        else:
            check_schema(body, self.created, self.documents.document(str(body["schema_id"])).get("definition"))

    def _evolve(
        self,
        record: LogRecord,
        kind: RowKind,
        name: str,
        body: Mapping[str, Any],
        at: ChainPosition | None,
        chain_sha256: bytes = b"",
        *,
        position: int = 0,
    ) -> dict[str, Any]:
        key, names = self._looked_at(name, body)
        before = self.documents.document(key, names)
        document = evolve(self.topic, before, name, body, at.position if at else position)
        changed = changes(self.topic, before, document)
        self.documents.change(key, changed)
        if name == LogCreated.__name__:
            self.created = document
        tenant = key if self.topic in _KEYED_BY_TENANT else str(document.get("tenant", ""))
        return self._row(record, kind, name, body, key, tenant, changed, at=at, chain_sha256=chain_sha256, position=position)

    def _row(
        self,
        record: LogRecord,
        kind: RowKind,
        name: str = "",
        body: Mapping[str, Any] | None = None,
        key: str = "",
        tenant: str = "",
        changed: Mapping[str, Document | None] | None = None,
        *,
        at: ChainPosition | None = None,
        chain_sha256: bytes = b"",
        position: int | None = None,
    ) -> dict[str, Any]:
        """`at`: of a decided record; `position`: of the decided one before another."""
        self.step += 1
        self._read.pop(record.offset, None)
        parts = dict(changed or {})
        head = parts.pop(HEAD, None)
        if position is None or at is not None:
            position = at.position if at else self.chain.position
        return {
            "topic": self.topic,
            "kafka_partition": self.partition,
            "kafka_offset": record.offset,
            "kafka_time_ms": record.timestamp,
            "step": self.step,
            "kind": kind,
            "fact": name,
            "key": key,
            "event_id": str(body["event_id"]) if body else "",
            "valid_from_us": int(body["occurred_at"]) if body else record.timestamp * 1000,
            "store": at.store if at else "",
            "position": position,
            "chain_sha256": chain_sha256.hex(),
            "sha256": sha256(record.value or b"").hexdigest(),
            "body": _json(plain(body)) if body else "",
            "tenant": tenant,
            "head": _json(head) if head is not None else "",
            "parts": {name: _json(part) if part is not None else "" for name, part in parts.items()},
        }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
