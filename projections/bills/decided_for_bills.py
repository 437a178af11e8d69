"""What people decided that a bill needs, read from Kafka alone: prices, cuts, issued bills, write-offs, keys, and how producers ended.

The log's half of `bill_from_log`; each function reads a topic, or a partition of it, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from events.facts.topics import TOPICS
from events.log.chain import Claim, claim_of
from events.log.client import Reader
from events.log.decided_records import ChainBroken, DecidedRecords
from events.log.heartbeat import newest_heartbeats, relay_keys
from events.log.record import Record
from events.log.schemas import read_schemas
from events.producers.opened_epochs import OpenedEpochs, market_keys
from events.schema.codec import Codec, Undecodable
from rating.book import PriceBook, book_version
from rating.key_terms import KeyTerm, key_terms

Body = Mapping[str, Any]


class LogIncomplete(Exception):
    """The log does not hold what a bill needs: a decided record that is not proven, or an unreadable usage record."""


@dataclass(frozen=True, slots=True)
class DecidedRecord:
    """One decided fact in the order of its partition's chain."""

    name: str
    body: Body
    position: int
    record: Record


def decided_facts(reader: Reader, codec: Codec, topic: str, partition: int | None = None) -> Iterator[DecidedRecord]:
    """Each decided fact of a topic once, in its partition's order. Copies are skipped; so is what the relay did not send.

    Raises LogIncomplete where the chain has a gap at the end that was there when reading began, unless the relay's newest heartbeat says
    that it sent no more: then what waits is of another writer.
    """
    skip = {p: 0 for p in range(TOPICS[topic].partitions) if partition is not None and p != partition}
    decided = DecidedRecords(relay_keys(reader.settings))
    yield from _decoded(decided.of(reader.read(topic, end=skip)), codec)
    waits = any(chain.waiting for chain in decided.chains.values())
    newest = next(iter(newest_heartbeats(reader)), None) if waits else None
    try:
        decided.require_whole(newest.heartbeat if newest else None)
    except ChainBroken as e:
        raise LogIncomplete(str(e)) from e


def _decoded(claims: Iterable[Claim[Record]], codec: Codec) -> Iterator[DecidedRecord]:
    for claim in claims:
        name, body = codec.decode(claim.record.value)  # Undecodable: a fold of decided facts skips nothing
        yield DecidedRecord(name, body, claim.at.position, claim.record)


# --- prices


def price_book(facts: Iterable[DecidedRecord], book: str, position: int | None = None) -> PriceBook:
    """A book as it was decided up to a position of the store (None: all of it)."""
    versions = (
        f for f in facts if f.name == "PriceBookPublished" and f.body["book"] == book and (position is None or f.position <= position)
    )
    return PriceBook(book_version(f.body, f.position) for f in versions)


# --- producers


@dataclass(slots=True)
class Producers:
    """The epochs: which were opened, and which ended, by the offset of the record on `producers` that says so."""

    opened: OpenedEpochs
    _ended: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def ended(self, below: int) -> frozenset[str]:
        """Epochs closed or written off by the records below an offset. A write-off counts only when the relay sent it."""
        return frozenset(epoch for offset, epoch in self._ended if offset < below)

    def read(self, reader: Reader, codec: Codec) -> None:
        """To its end: what proves a record below an offset may lie behind it."""
        decided = _decoded(DecidedRecords(relay_keys(reader.settings)).of(self._noting(reader.read("producers"), codec)), codec)
        self._ended += [(fact.record.offset, str(fact.body["epoch"])) for fact in decided if fact.name == "ProducerWrittenOff"]

    def _noting(self, records: Iterable[Record], codec: Codec) -> Iterator[Record]:
        for record in records:
            self.opened.add([record])
            if claim_of(record, record.headers) is None:
                self._ended += [(record.offset, epoch) for epoch in _epoch_closed(record, codec)]
            yield record


def producers_of(reader: Reader, codec: Codec) -> Producers:
    _, log_id = read_schemas(reader)
    producers = Producers(OpenedEpochs(codec, log_id or "", market_keys(reader.settings)))
    producers.read(reader, codec)
    return producers


def _epoch_closed(record: Record, codec: Codec) -> tuple[str, ...]:
    """None or one. Unreadable bytes end no epoch."""
    try:
        name, body = codec.decode(record.value)
    except Undecodable:
        return ()
    return (str(body["epoch"]),) if name == "ProducerClosed" else ()


def epochs_ended(reader: Reader, codec: Codec, below: int) -> frozenset[str]:
    """As `Producers.ended`, from the log."""
    return producers_of(reader, codec).ended(below)


# --- keys


def terms_of_keys(reader: Reader, codec: Codec, partition: int, tenants: Set[str]) -> dict[str, dict[str, KeyTerm]]:
    """Tenant → key_id → term, of tenants whose facts are in a partition of `accounts`. Raises LogIncomplete."""
    facts: dict[str, list[tuple[str, Body]]] = {tenant: [] for tenant in tenants}
    for fact in decided_facts(reader, codec, "accounts", partition):
        if (mine := facts.get(str(fact.body.get("tenant")))) is not None:
            mine.append((fact.name, fact.body))
    return {tenant: key_terms(mine) for tenant, mine in facts.items()}


# --- bills


@dataclass(slots=True)
class RecordDecisions:
    """What two people decided about records of one partition of `usage`."""

    written_off: dict[int, frozenset[bytes]] = field(default_factory=dict[int, frozenset[bytes]])
    """Offset → hashes of the bytes that were written off there, whether or not they can be read."""
    counted: dict[tuple[int, bytes], int] = field(default_factory=dict[tuple[int, bytes], int])
    """Offset and hash of held usage → position of the first decision to count it."""

    def add(self, record: Body, decision: str, position: int) -> None:
        offset, digest = int(record["offset"]), bytes(record["sha256"])
        if decision == "write_off":
            self.written_off[offset] = self.written_off.get(offset, frozenset()) | {digest}
        elif decision == "count":
            self.counted[offset, digest] = min(position, self.counted.get((offset, digest), position))


@dataclass(slots=True)
class TenantBills:
    """What was decided on one tenant's bills, by their numbers: the body of each cut, and the offsets that each issued bill left out."""

    tenant: str
    cuts: dict[int, Body] = field(default_factory=dict[int, Body])
    excluded: dict[int, Sequence[int]] = field(default_factory=dict[int, Sequence[int]])

    def add(self, fact: DecidedRecord) -> None:
        if fact.name == "BillCutFixed":
            self.cuts[fact.body["number"]] = fact.body
        elif fact.name == "BillIssued":
            self.excluded[fact.body["number"]] = fact.body["excluded"]


@dataclass(slots=True)
class BillDecisions:
    """Of topic `bills`: what was decided on some tenants' bills, and about records of `usage`, by partition."""

    tenants: dict[str, TenantBills]
    records: dict[int, RecordDecisions]


def decided_on_bills(reader: Reader, codec: Codec, tenants: Iterable[str]) -> BillDecisions:
    """In one pass over all partitions. Raises LogIncomplete."""
    found = BillDecisions({t: TenantBills(t) for t in tenants}, {p: RecordDecisions() for p in range(TOPICS["usage"].partitions)})
    asked: dict[str, Sequence[Body]] = {}
    for fact in decided_facts(reader, codec, "bills"):
        if (mine := found.tenants.get(str(fact.body.get("tenant")))) is not None:
            mine.add(fact)
        if fact.body.get("topic") != "usage":
            continue
        match fact.name:
            case "RecordWrittenOff":
                listed: Sequence[Body] = (fact.body,)
            case "RecordSetDecisionRequested":
                asked[fact.body["record_set"]] = fact.body["records"]
                continue
            case "RecordSetDecided":
                listed = asked.pop(fact.body["record_set"])  # its own partition's chain has the request before it
            case _:
                continue
        for record in listed:
            if record["partition"] in found.records:
                found.records[record["partition"]].add(record, fact.body.get("decision", "write_off"), fact.position)
    return found


def tenant_bills(reader: Reader, codec: Codec, tenant: str) -> TenantBills:
    return decided_on_bills(reader, codec, [tenant]).tenants[tenant]
