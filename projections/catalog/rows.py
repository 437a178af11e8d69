"""One row for each record of a folded topic: what it said, and the whole document of its key after it.

Dense (K6): copies, observed facts, changes of the store and unreadable records have rows too, so a missing offset is a gap and
nothing else. Pure: the sink in `history` reads and writes.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from events.facts.log import LogCreated
from events.facts.topics import DECIDED_TOPICS, FACTS
from events.log.chain import STORE_OPENED, Chain, ChainCheck, ChainPosition, chain_position_of
from events.log.chain_check import NOT_SENT, UNREADABLE_OPENING, check_chain
from events.log.record import LogRecord
from events.log.recorded_schemas import check_log, check_schema, check_signature, claimed_fact
from events.process.signing_keys import PublicKeys
from events.schema.codec import Codec, Undecodable
from projections.catalog.document import Document, plain
from projections.catalog.documents import Misplaced, evolve
from projections.ingest.sink import DeadLetter

OBSERVED_KEPT = 100_000
"""event_ids of observed facts remembered per partition, to tell copies: hours of a busy deployment topic."""
WAITING_MAX = 10_000
"""Records held behind a gap: past it the process stops, since something is broken for good."""

RowKind = Literal["decided", "observed", "copy", "store", "dead"]


class GapTooLong(Exception):
    """Too many records wait for a predecessor that does not come."""


@dataclass(slots=True)
class PartitionFold:
    """One partition of one topic: its chain where it is a decided one, the newest document of each key, and what waits for its predecessor."""

    topic: str
    partition: int
    codec: Codec
    setup_keys: PublicKeys | None = None
    """For topic `schemas`: set-up signs what is on it."""
    chain: Chain = field(default_factory=Chain)
    documents: dict[str, Document] = field(default_factory=dict[str, Document])
    step: int = 0
    """Rows folded so far: the order in which documents changed, which is not the order of offsets where two relays crossed."""
    stored: set[int] = field(default_factory=set[int])
    """Offsets past the first gap that have their rows already (the gap waited for its predecessor before a restart)."""
    observed: OrderedDict[str, None] = field(default_factory=OrderedDict[str, None])
    waiting: list[tuple[LogRecord, Mapping[str, bytes]]] = field(default_factory=list[tuple[LogRecord, Mapping[str, bytes]]])

    def take(self, record: LogRecord, headers: Mapping[str, bytes]) -> tuple[list[dict[str, Any]], list[DeadLetter]]:
        """The rows that this record makes possible: none while it waits, several when it is what others waited for.

        Raises Undecodable for a decided record in its place that cannot be read: the fold stops, it skips nothing.
        """
        if record.offset in self.stored:
            self.stored.discard(record.offset)
            return [], []
        self.waiting.append((record, headers))
        rows: list[dict[str, Any]] = []
        dead: list[DeadLetter] = []
        while self._progress(rows, dead):
            pass
        return rows, dead

    def set_aside_older(self, at_ms: float) -> tuple[list[dict[str, Any]], list[DeadLetter]]:
        """Gives up waiting for predecessors of what was appended before `at_ms`: the caller knows that no relay sent it. The rows that this
        makes possible; observed facts that came behind it are among them."""
        foreign = [r for r, headers in self.waiting if r.timestamp < at_ms and chain_position_of(headers) is not None]
        offsets = {r.offset for r in foreign}
        self.waiting = [(r, headers) for r, headers in self.waiting if r.offset not in offsets]
        rows = [self._row(r, "dead") for r in foreign]
        dead = [DeadLetter(r, NOT_SENT, "it claims a place in the chain of decisions, and the relay did not send it") for r in foreign]
        while self._progress(rows, dead):
            pass
        return rows, dead

    def require_bounded(self) -> None:
        """Raises GapTooLong."""
        if len(self.waiting) > WAITING_MAX:
            raise GapTooLong(f"{self.topic}/{self.partition}: {len(self.waiting)} records wait for the successor of {self.chain.position}")

    def _progress(self, rows: list[dict[str, Any]], dead: list[DeadLetter]) -> bool:
        """Takes the first waiting record that can be taken. Observed facts and foreign records do not overtake a decided one that waits."""
        for index, (record, headers) in enumerate(self.waiting):
            # Where the relay writes nothing there is no chain: headers with a chain position are not the relay's, and must not make other records wait.
            chain_position = chain_position_of(headers) if self.topic in DECIDED_TOPICS else None
            if chain_position is None:
                if index:
                    continue
                row = self._observed(record, dead)
            else:
                row = self._decided(record, headers, chain_position, dead)
            if row is not None:
                del self.waiting[index]
                rows.append(row)
                return True
        return False

    def _decided(
        self, record: LogRecord, headers: Mapping[str, bytes], chain_position: ChainPosition, dead: list[DeadLetter]
    ) -> dict[str, Any] | None:
        match check_chain(self.chain, self.codec, chain_position, headers, record.value):
            case ChainCheck.WAIT:
                return None
            case ChainCheck.UNREADABLE:
                dead.append(
                    DeadLetter(record, UNREADABLE_OPENING, f"it claims to open store {chain_position.store}, and nobody can read it")
                )
                return self._row(record, "dead")  # without its chain position, which the relay did not write
            case ChainCheck.COPY:
                return self._row(record, "copy", chain_position=chain_position)
            case ChainCheck.NEXT:
                name, body = self.codec.decode(record.value)
                self.chain.advance(chain_position)
                if name == STORE_OPENED:
                    return self._row(record, "store", name, body, chain_position=chain_position)
                return self._fold(record, "decided", name, body, chain_position)

    def _observed(self, record: LogRecord, dead: list[DeadLetter]) -> dict[str, Any]:
        try:
            name, body = self.codec.decode(record.value)
            entry = FACTS.get(name)
            if entry is None or entry.topic != self.topic:
                raise Undecodable("misplaced", f"{name} does not belong on {self.topic}")
            if entry.cls.kind != "observed":
                raise Undecodable("no_place", f"{name} is decided, but this record has no place in the relay's chain")
            if self.topic == "schemas":
                self._check_schemas(record, name, body)
            if body["event_id"] in self.observed:
                return self._row(record, "copy", name, body)
            row = self._fold(record, "observed", name, body, None)
        except (Undecodable, Misplaced) as e:
            code = e.code if isinstance(e, Undecodable) else "misplaced"
            dead.append(DeadLetter(record, code, str(e)))
            return self._row(record, "dead", chain_position=None)
        self.observed[body["event_id"]] = None
        if len(self.observed) > OBSERVED_KEPT:
            self.observed.popitem(last=False)
        return row

    def _check_schemas(self, record: LogRecord, name: str, body: Mapping[str, Any]) -> None:
        """What every process passes over at its start is no part of the history either (K2). Raises Undecodable."""
        created = next((d for d in self.documents.values() if "log_id" in d), None)
        if claimed_fact(record) != name:
            raise Undecodable("not_signed", f"{name} without a header that says so: set-up did not write it")
        assert self.setup_keys is not None
        check_signature(record, self.setup_keys)
        if name == LogCreated.__name__:
            check_log(body, created)
        else:
            check_schema(body, created, self.documents.get(str(body["schema_id"]), {}).get("definition"))

    def _fold(
        self, record: LogRecord, kind: RowKind, name: str, body: Mapping[str, Any], chain_position: ChainPosition | None
    ) -> dict[str, Any]:
        key = str(body[FACTS[name].key])
        position = chain_position.position if chain_position else self.chain.position
        document = evolve(self.topic, self.documents.get(key, {}), name, body, position)
        self.documents[key] = document
        return self._row(record, kind, name, body, key, document, chain_position)

    def _row(
        self,
        record: LogRecord,
        kind: RowKind,
        name: str = "",
        body: Mapping[str, Any] | None = None,
        key: str = "",
        document: Document | None = None,
        chain_position: ChainPosition | None = None,
    ) -> dict[str, Any]:
        self.step += 1
        position = chain_position.position if chain_position else self.chain.position
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
            "store": chain_position.store if chain_position else "",
            "position": position,
            "previous": chain_position.previous if chain_position else 0,
            "sha256": sha256(record.value or b"").hexdigest(),
            "body": _json(plain(body)) if body else "",
            "state": _json(document) if document is not None else "",
        }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
