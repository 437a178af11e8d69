"""What a bill needs, read from Kafka alone: cuts, issued bills, prices, producers, and a tenant's usage record by record.

This is the second source of the pure functions in `rating/`; the first is ClickHouse (`bill_from_tables`). They share no other code,
so that a fault of one shows as a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from events.facts.meters import METERS
from events.facts.topics import TOPICS
from events.log.chain import Claim, claim_of
from events.log.client import Reader
from events.log.decided_records import ChainBroken, DecidedRecords
from events.log.heartbeat import newest_heartbeats, relay_keys
from events.log.partitioner import partition_of
from events.log.record import Record
from events.log.schemas import read_schemas
from events.producers.opened_epochs import OpenedEpochs, market_keys
from events.schema.codec import Codec, Undecodable, frame_schema_id
from projections.bills.usage_verdicts import UsageVerdicts
from projections.usage.validator import why_unreadable
from rating.bill import Bill, make_bill
from rating.book import PriceBook, book_version
from rating.key_terms import KeyTerm, key_terms
from rating.rules import SETTLED, VOIDED, UsageRecord
from rating.statement import Cutoff, Place, Statement, StatementBuilder

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


# --- prices, producers, accounts


def price_book(facts: Iterable[DecidedRecord], book: str, position: int | None = None) -> PriceBook:
    """A book as it was decided up to a position of the store (None: all of it)."""
    versions = (
        f for f in facts if f.name == "PriceBookPublished" and f.body["book"] == book and (position is None or f.position <= position)
    )
    return PriceBook(book_version(f.body, f.position) for f in versions)


def epochs_ended(reader: Reader, codec: Codec, below: int) -> frozenset[str]:
    """Producer epochs closed or written off by the records of `producers` below an offset. A write-off counts only when the relay sent it."""
    if not below:
        return frozenset()
    closed: set[str] = set()

    def noting_closed() -> Iterator[Record]:
        for record in reader.read("producers"):  # to its end: what proves a record below the offset may lie behind it
            if record.offset < below and claim_of(record, record.headers) is None:
                closed.update(_epoch_closed(record, codec))
            yield record

    decided = _decoded(DecidedRecords(relay_keys(reader.settings)).of(noting_closed()), codec)
    written_off = {str(fact.body["epoch"]) for fact in decided if fact.name == "ProducerWrittenOff" and fact.record.offset < below}
    return frozenset(closed | written_off)


def _epoch_closed(record: Record, codec: Codec) -> tuple[str, ...]:
    """None or one. Unreadable bytes end no epoch."""
    try:
        name, body = codec.decode(record.value)
    except Undecodable:
        return ()
    return (str(body["epoch"]),) if name == "ProducerClosed" else ()


WrittenOffHashes = Mapping[int, frozenset[bytes]]
"""Of one partition: offset → hashes of the bytes that were written off there."""
CountedRecords = Mapping[tuple[int, bytes], int]
"""Of one partition: offset and hash of held usage → position of the first decision to count it."""


def decided_about(reader: Reader, codec: Codec, topic: str, partition: int) -> tuple[WrittenOffHashes, CountedRecords]:
    """What two people decided about the records of a partition: the write-offs, whether or not their records can be read, and what they
    count though it is held. Raises LogIncomplete."""
    found: dict[int, frozenset[bytes]] = {}
    counted: dict[tuple[int, bytes], int] = {}
    asked: dict[str, Sequence[Body]] = {}
    for fact in decided_facts(reader, codec, "bills"):
        if fact.body.get("topic") != topic:
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
        decision = fact.body.get("decision", "write_off")
        for record in listed:
            offset, digest = int(record["offset"]), bytes(record["sha256"])
            if record["partition"] != partition:
                continue
            if decision == "write_off":
                found[offset] = found.get(offset, frozenset()) | {digest}
            elif decision == "count":
                counted[offset, digest] = min(fact.position, counted.get((offset, digest), fact.position))
    return found, counted


# --- usage


def usage_record(record: Record, name: str, body: Body) -> UsageRecord:
    """A record on `usage` as rating sees it."""
    assert record.value is not None
    settled = name == SETTLED
    return UsageRecord(
        partition=record.partition,
        offset=record.offset,
        append_us=record.timestamp * 1000,
        sha256=sha256(record.value).digest(),
        fact=name,
        event_id=body["event_id"],
        occurred_at=body["occurred_at"],
        epoch=body["epoch"],
        sequence=body["sequence"],
        outcome=body["outcome"] if settled else "",
        shadow=body["shadow"] if settled else False,
        invocation_key=body["invocation_key"] if settled else b"",
        provider=body["provider"] if settled else "",
        model=body["model"] if settled else "",
        model_version=body["model_version"] if settled else "",
        quantities=tuple(body[m] for m in METERS) if settled else (),
        voided=body["voided"] if name == VOIDED else "",
    )


class UsageLog:
    """One tenant's usage on the log. All of it is in one partition, since the tenant is the key."""

    def __init__(self, reader: Reader, codec: Codec, tenant: str) -> None:
        self._reader, self._codec, self._tenant = reader, codec, tenant
        self.unreadable: set[int] = set()
        """Offsets of unreadable records that are not written off (K9)."""
        self.unreadable_own: set[int] = set()
        """Of those the ones whose key is the tenant's."""
        self._broken = False
        """Whether a chain of the tenant misses a record below a cut."""
        self.excluded: set[int] = set()
        """Offsets of unreadable records that are written off."""
        self.written_off: set[int] = set()
        """Offsets met whose very bytes are written off, whether or not they can be read by now."""
        self.partition = partition_of(tenant.encode(), TOPICS["usage"].partitions)
        self._written_off: WrittenOffHashes | None = None
        self._counted: CountedRecords = {}

    def end(self) -> int:
        """The offset after the last record now."""
        return self._reader.end_offsets("usage")["usage", self.partition]

    def facts(self, below: int) -> Iterator[tuple[Record, str, Body]]:
        """The tenant's records below an offset, each with its fact's name and body. What cannot be read is noted in `unreadable` and passed over,
        as in the table."""
        needle, written_off = self._tenant.encode(), self._read_written_off()
        for record in self._reader.read("usage", end=self._only(below)):
            if record.offset in written_off and sha256(record.value or b"").digest() in written_off[record.offset]:
                self.written_off.add(record.offset)
                if self._is_lost(record, written_off[record.offset]):
                    self.excluded.add(record.offset)
                    continue
            try:
                frame_schema_id(record.value)
                # An Avro string lies in the frame as its own bytes: what does not contain them is of another tenant, and is not decoded.
                if needle not in (record.value or b""):
                    continue
                name, body = self._codec.decode(record.value)
            except Undecodable:
                self.unreadable.add(record.offset)
                if record.key == needle:
                    self.unreadable_own.add(record.offset)
                continue
            if body.get("tenant") == self._tenant:
                yield record, name, body

    def statements(self, asked: Sequence[tuple[Cutoff, PriceBook]]) -> list[Statement]:
        """The statement of each cut-off, in two passes over the log: what counts and what was voided first, then everything once."""
        below = max((cutoff.cuts.get(self.partition, 0) for cutoff, _ in asked), default=0)
        opened, terms = self._opened_epochs(), self._key_terms()  # before a pass: the reader follows one topic at a time
        verdicts = [UsageVerdicts(opened, terms) for _ in asked]
        voids: list[tuple[UsageRecord, str]] = []
        for record, name, body in self.facts(below):
            for (cutoff, _), at in zip(asked, verdicts, strict=True):
                if cutoff.knows(self.partition, record.offset):
                    at.add(record, name, body)
            if name == VOIDED:
                voids.append((usage_record(record, name, body), str(body["voided"])))
        builders: list[tuple[UsageVerdicts, int, StatementBuilder]] = []
        for (cutoff, book), at in zip(asked, verdicts, strict=True):
            at.settle()
            voided = (
                event
                for void, event in voids
                if cutoff.knows(self.partition, void.offset)
                and self._decided(void, at.of(void.offset), cutoff.decided_position) in ("whole", "decided")
            )
            builders.append((at, cutoff.decided_position, StatementBuilder(cutoff, book, frozenset(voided))))
        self._broken = any(at.broken for at in verdicts)
        for record, name, body in self.facts(below):
            rated = usage_record(record, name, body)
            for at, position, builder in builders:
                builder.add(rated, self._decided(rated, at.of(record.offset), position))
        return [builder.statement() for _, _, builder in builders]

    def _decided(self, record: UsageRecord, place: Place, position: int) -> Place:
        """The place of a record after what two people decided up to a position."""
        if place == "whole":
            return place
        return "decided" if self._counted.get((record.offset, record.sha256), position + 1) <= position else place

    def require_readable(self) -> None:
        """After `statements`. An unreadable record is the tenant's when its key says so, and may be when a chain of the tenant misses one: then no
        bill is issued (K9). Raises LogIncomplete."""
        if found := sorted(self.unreadable if self._broken else self.unreadable_own):
            raise LogIncomplete(f"usage/{self.partition}: nobody can read the records at {found[:10]}, and they are not written off (K9)")

    def _opened_epochs(self) -> OpenedEpochs:
        _, log_id = read_schemas(self._reader)
        opened = OpenedEpochs(self._codec, log_id or "", market_keys(self._reader.settings))
        opened.add(self._reader.read("producers"))
        return opened

    def _key_terms(self) -> dict[str, KeyTerm]:
        partition = partition_of(self._tenant.encode(), TOPICS["accounts"].partitions)
        decided = decided_facts(self._reader, self._codec, "accounts", partition)
        return key_terms((fact.name, fact.body) for fact in decided if fact.body.get("tenant") == self._tenant)

    def _read_written_off(self) -> WrittenOffHashes:
        """Before a pass: the reader follows one topic at a time."""
        if self._written_off is None:
            self._written_off, self._counted = decided_about(self._reader, self._codec, "usage", self.partition)
        return self._written_off

    def _is_lost(self, record: Record, hashes: frozenset[bytes]) -> bool:
        """These very bytes are written off and unreadable. What can be read is counted, written off or not."""
        return sha256(record.value or b"").digest() in hashes and why_unreadable(self._codec.schemas, record.value) is not None

    def _only(self, below: int) -> dict[int, int]:
        return {p: below if p == self.partition else 0 for p in range(TOPICS["usage"].partitions)}


def cutoff_of(cut: Body, excluded: Iterable[int] = ()) -> Cutoff:
    """The cut-off that a `BillCutFixed` pins, without what its bill excluded. Raises UnknownRatingVersion."""
    ends = {c["partition"]: c["offset"] for c in cut["cuts"]}
    return Cutoff(ends, cut["until"], cut["rating_version"], frozenset(excluded), cut["decided_position"])


@dataclass(frozen=True, slots=True)
class TenantBills:
    """What was decided on one tenant's bills, by their numbers: the body of each cut, and the offsets that each issued bill left out."""

    tenant: str
    cuts: Mapping[int, Body]
    excluded: Mapping[int, Sequence[int]]

    @classmethod
    def of(cls, tenant: str, facts: Iterable[DecidedRecord]) -> TenantBills:
        cuts, excluded = dict[int, Body](), dict[int, Sequence[int]]()
        for fact in facts:
            if fact.body.get("tenant") != tenant:
                continue
            if fact.name == "BillCutFixed":
                cuts[fact.body["number"]] = fact.body
            elif fact.name == "BillIssued":
                excluded[fact.body["number"]] = fact.body["excluded"]
        return cls(tenant, cuts, excluded)


def tenant_bills(reader: Reader, codec: Codec, tenant: str) -> TenantBills:
    """In one pass over their partition of `bills`. Raises LogIncomplete."""
    partition = partition_of(tenant.encode(), TOPICS["bills"].partitions)
    return TenantBills.of(tenant, decided_facts(reader, codec, "bills", partition))


def bills_from_log(reader: Reader, codec: Codec, decided: TenantBills, numbers: Sequence[int]) -> list[Bill]:
    """The bills of consecutive cuts, each against the one before. Of a series that does not begin with number 1 the first is only
    what the second is compared with. Raises LogIncomplete over an unreadable record, and where a cut is not on the log.
    """
    if missing := [n for n in numbers if n not in decided.cuts]:
        raise LogIncomplete(f"the log has no cut of {decided.tenant} with the numbers {missing[:10]}")
    cuts = [decided.cuts[n] for n in numbers]
    prices = list(decided_facts(reader, codec, "prices"))
    asked = [
        (cutoff_of(cut, decided.excluded.get(n, ())), price_book(prices, cut["price_book"], cut["decided_position"]))
        for n, cut in zip(numbers, cuts, strict=True)
    ]
    usage = UsageLog(reader, codec, decided.tenant)
    statements = usage.statements(asked)
    usage.require_readable()
    bills: list[Bill] = []
    for i, (cut, now) in enumerate(zip(cuts, statements, strict=True)):
        if i == 0 and cut["number"] != 1:
            continue
        before = statements[i - 1] if i else Statement()
        ended = epochs_ended(reader, codec, cut.get("producers_offset", 0))
        below = asked[i][0].cuts.get(usage.partition, 0)
        # An offset that the bill excludes is excluded here only when those very bytes are written off.
        excluded = usage.excluded | (usage.written_off & asked[i][0].excluded)
        bills.append(make_bill(cut, now, before, ended, (offset for offset in excluded if offset < below)))
    return bills
