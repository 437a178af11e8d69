"""What people decided that a bill needs, read from Kafka alone: prices, cuts, issued bills, write-offs, keys, and how producers ended.

The log's half of `bill_from_log`. Each fold takes decided facts in the order of their partition; `decided_folds` keeps them between rounds.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from events.facts.topics import TOPICS
from events.log.chain import Claim, claim_of
from events.log.client import LogMismatch, Reader
from events.log.decided_records import ChainBroken, DecidedRecords
from events.log.heartbeat import newest_heartbeats, relay_keys
from events.log.partitioner import partition_of
from events.log.record import Record
from events.log.schemas import read_schemas
from events.producers.opened_epochs import OpenedEpochs, market_keys
from events.schema.codec import Codec, Undecodable
from rating.book import BookVersion, PriceBook, book_version
from rating.key_terms import KeyTerm, add_to_terms

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


class ReadOn:
    """Where the reading of a topic stands, or of one partition of it: offsets, and how far its chains are proven."""

    def __init__(self, reader: Reader, topic: str, partition: int | None = None) -> None:
        self._reader, self._topic = reader, topic
        self._next = {p: 0 for p in range(TOPICS[topic].partitions) if partition in (None, p)}
        self._decided = DecidedRecords(relay_keys(reader.settings))

    @property
    def waiting(self) -> int:
        """Records that nothing proves yet."""
        return sum(len(chain.waiting) for chain in self._decided.chains.values())

    def records(self) -> Iterator[Record]:
        """Each that came since. Raises LogMismatch where the log ends before what was read."""
        ends = {p: end for (_, p), end in self._reader.end_offsets(self._topic).items()}
        if shrunk := [p for p, at in self._next.items() if ends[p] < at]:
            raise LogMismatch(f"{self._topic}/{shrunk[0]} ends at {ends[shrunk[0]]}, and was read up to {self._next[shrunk[0]]}")
        if any(at < ends[p] for p, at in self._next.items()):
            yield from self._reader.read(self._topic, self._next, {p: end if p in self._next else 0 for p, end in ends.items()})
        self._next = {p: ends[p] for p in self._next}

    def decided(self, records: Iterable[Record], codec: Codec) -> Iterator[DecidedRecord]:
        for claim in self._decided.of(records):
            yield _decoded(claim, codec)
        self._decided.foreign.clear()

    def facts(self, codec: Codec) -> Iterator[DecidedRecord]:
        """Each decided fact that came since, once. Copies are skipped; so is what the relay did not send.

        Raises LogIncomplete where a chain has a gap at the end that was there when reading began, unless the relay's newest heartbeat says
        that it sent no more: then what waits is of another writer.
        """
        yield from self.decided(self.records(), codec)
        newest = next(iter(newest_heartbeats(self._reader)), None) if self.waiting else None
        try:
            self._decided.require_whole(newest.heartbeat if newest else None)
        except ChainBroken as e:
            raise LogIncomplete(str(e)) from e


def _decoded(claim: Claim[Record], codec: Codec) -> DecidedRecord:
    name, body = codec.decode(claim.record.value)  # Undecodable: a fold of decided facts skips nothing
    return DecidedRecord(name, body, claim.at.position, claim.record)


def decided_facts(reader: Reader, codec: Codec, topic: str, partition: int | None = None) -> Iterator[DecidedRecord]:
    """As `ReadOn.facts`, from the beginning of a topic."""
    return ReadOn(reader, topic, partition).facts(codec)


def usage_partition(tenant: str) -> int:
    return partition_of(tenant.encode(), TOPICS["usage"].partitions)


# --- prices


@dataclass(slots=True)
class Prices:
    """All books; `positions`: of what was published, in order."""

    versions: dict[str, list[BookVersion]] = field(default_factory=dict[str, list[BookVersion]])
    positions: list[int] = field(default_factory=list[int])

    def add(self, fact: DecidedRecord) -> None:
        self.positions.append(fact.position)
        if fact.name == "PriceBookPublished":
            self.versions.setdefault(fact.body["book"], []).append(book_version(fact.body, fact.position))

    def book(self, book: str, position: int) -> PriceBook:
        """A book as it was decided up to a position of the store."""
        return PriceBook(v for v in self.versions.get(book, ()) if v.position <= position)

    @property
    def size(self) -> int:
        return len(self.positions) + sum(len(v.prices) for versions in self.versions.values() for v in versions)


# --- producers


@dataclass(slots=True)
class Producers:
    """The epochs: which were opened, and which ended, by the offset of the record on `producers` that says so."""

    opened: OpenedEpochs
    _read_on: ReadOn
    _ended: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    size: int = 0

    def ended(self, below: int) -> frozenset[str]:
        """Epochs closed or written off by the records below an offset. A write-off counts only when the relay sent it."""
        return frozenset(epoch for offset, epoch in self._ended if offset < below)

    def read(self, codec: Codec) -> None:
        """On, to its end: what proves a record below an offset may lie behind it."""
        decided = self._read_on.decided(self._noting(self._read_on.records(), codec), codec)
        self._ended += [(fact.record.offset, str(fact.body["epoch"])) for fact in decided if fact.name == "ProducerWrittenOff"]

    def _noting(self, records: Iterable[Record], codec: Codec) -> Iterator[Record]:
        for record in records:
            self.size += 1
            self.opened.add([record])
            if claim_of(record, record.headers) is None:
                self._ended += [(record.offset, epoch) for epoch in _epoch_closed(record, codec)]
            yield record


def producers_of(reader: Reader, codec: Codec) -> Producers:
    """None of it is read yet."""
    _, log_id = read_schemas(reader)
    return Producers(OpenedEpochs(codec, log_id or "", market_keys(reader.settings)), ReadOn(reader, "producers"))


def _epoch_closed(record: Record, codec: Codec) -> tuple[str, ...]:
    """None or one. Unreadable bytes end no epoch."""
    try:
        name, body = codec.decode(record.value)
    except Undecodable:
        return ()
    return (str(body["epoch"]),) if name == "ProducerClosed" else ()


def epochs_ended(reader: Reader, codec: Codec, below: int) -> frozenset[str]:
    """As `Producers.ended`, from the log."""
    producers = producers_of(reader, codec)
    producers.read(codec)
    return producers.ended(below)


# --- keys


@dataclass(slots=True)
class KeyTerms:
    """Tenant → key_id → term, of one partition of `accounts`."""

    of: dict[str, dict[str, KeyTerm]] = field(default_factory=dict[str, dict[str, KeyTerm]])
    size: int = 0

    def add(self, fact: DecidedRecord) -> None:
        if fact.name in ("ApiKeyIssued", "ApiKeyRevoked"):
            self.size += fact.name == "ApiKeyIssued"
            add_to_terms(self.of.setdefault(str(fact.body["tenant"]), {}), fact.name, fact.body)


# --- bills


@dataclass(slots=True)
class RecordDecisions:
    """What two people decided about records of one partition of `usage`."""

    written_off: dict[int, frozenset[bytes]] = field(default_factory=dict[int, frozenset[bytes]])
    """Offset → hashes of the bytes that were written off there, whether or not they can be read."""
    counted: dict[tuple[int, bytes], int] = field(default_factory=dict[tuple[int, bytes], int])
    """Offset and hash of held usage → position of the first decision to count it."""
    positions: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """Partition of `bills` → where these decisions stand there."""

    def add(self, record: Body, decision: str, position: int) -> None:
        offset, digest = int(record["offset"]), bytes(record["sha256"])
        if decision == "write_off":
            self.written_off[offset] = self.written_off.get(offset, frozenset()) | {digest}
        elif decision == "count":
            self.counted[offset, digest] = min(position, self.counted.get((offset, digest), position))


class _Cuts(dict[int, Any]):
    """number → body of the cut, packed: of many tenants they are kept for long."""

    def __setitem__(self, number: int, body: Body) -> None:
        super().__setitem__(number, marshal.dumps(dict(body)))

    def __getitem__(self, number: int) -> Body:
        return marshal.loads(super().__getitem__(number))

    def get(self, number: int, default: Any = None) -> Any:
        packed = super().get(number)
        return default if packed is None else marshal.loads(packed)


@dataclass(slots=True)
class TenantBills:
    """What was decided on one tenant's bills, by their numbers: the body of each cut, and the offsets that each issued bill left out."""

    tenant: str
    cuts: dict[int, Body] = field(default_factory=_Cuts)
    excluded: dict[int, Sequence[int]] = field(default_factory=dict[int, Sequence[int]])

    def add(self, fact: DecidedRecord) -> None:
        if fact.name == "BillCutFixed":
            self.cuts[fact.body["number"]] = fact.body
        elif fact.name == "BillIssued":
            self.excluded[fact.body["number"]] = tuple(fact.body["excluded"])

    def forget_before(self, number: int) -> None:
        for old in [n for n in self.cuts if n < number]:
            del self.cuts[old]
            self.excluded.pop(old, None)


class FirstBill(NamedTuple):
    """Of a month and a partition of usage: the first cut that has one before it."""

    position: int
    tenant: str
    number: int


@dataclass(slots=True)
class BillDecisions:
    """Of topic `bills`: what was decided on tenants' newest bills, and about records of `usage`, by partition. `asked`: None for all tenants,
    of each the two newest bills; else all bills of these."""

    asked: frozenset[str] | None = None
    tenants: dict[str, TenantBills] = field(default_factory=dict[str, TenantBills])
    records: dict[int, RecordDecisions] = field(default_factory=lambda: {p: RecordDecisions() for p in range(TOPICS["usage"].partitions)})
    first: dict[tuple[int, str], FirstBill] = field(default_factory=dict[tuple[int, str], FirstBill])
    """Of these months: every biller chooses them alike."""
    _sets: dict[str, Sequence[Body]] = field(default_factory=dict[str, Sequence[Body]])
    size: int = 0

    def add(self, fact: DecidedRecord) -> None:
        tenant = fact.body.get("tenant")
        if fact.name in ("BillCutFixed", "BillIssued") and (self.asked is None or tenant in self.asked):
            self._add_bill(str(tenant), fact)
        if fact.body.get("topic") != "usage":
            return
        match fact.name:
            case "RecordWrittenOff":
                listed: Sequence[Body] = (fact.body,)
            case "RecordSetDecisionRequested":
                self._sets[fact.body["record_set"]] = fact.body["records"]
                self.size += len(fact.body["records"])
                return
            case "RecordSetDecided":
                listed = self._sets.pop(fact.body["record_set"])  # its own partition's chain has the request before it
            case _:
                return
        self.size += len(listed)
        for partition in {record["partition"] for record in listed} & self.records.keys():
            self.records[partition].positions.setdefault(fact.record.partition, []).append(fact.position)
        for record in listed:
            if record["partition"] in self.records:
                self.records[record["partition"]].add(record, fact.body.get("decision", "write_off"), fact.position)

    def of(self, tenant: str) -> TenantBills:
        return self.tenants.get(tenant) or TenantBills(tenant)

    def _add_bill(self, tenant: str, fact: DecidedRecord) -> None:
        mine = self.tenants.setdefault(tenant, TenantBills(tenant))
        mine.add(fact)
        if fact.name != "BillCutFixed":
            return
        number = int(fact.body["number"])
        if self.asked is None:
            mine.forget_before(number - 1)
        self.size += number <= 2 or self.asked is not None
        month = usage_partition(tenant), str(fact.body["period"])[:7]
        if number > 1 and fact.position < self.first.get(month, (fact.position + 1,))[0]:
            self.first[month] = FirstBill(fact.position, tenant, number)


def decided_on_bills(reader: Reader, codec: Codec, tenants: Iterable[str]) -> BillDecisions:
    """Of these tenants, in one pass over all partitions. Raises LogIncomplete."""
    found = BillDecisions(frozenset(tenants))
    for fact in decided_facts(reader, codec, "bills"):
        found.add(fact)
    return found


def tenant_bills(reader: Reader, codec: Codec, tenant: str) -> TenantBills:
    return decided_on_bills(reader, codec, [tenant]).of(tenant)
