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
from events.schema.codec import Codec, Undecodable, frame_schema_id
from projections.usage.validator import why_unreadable
from rating.bill import Bill, make_bill
from rating.book import PriceBook, book_version
from rating.rules import SETTLED, VOIDED, UsageRecord
from rating.statement import Cutoff, Statement, StatementBuilder

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


def written_off_hashes(reader: Reader, codec: Codec, topic: str, partition: int) -> WrittenOffHashes:
    """The write-offs of a partition, whether or not their records can be read. Raises LogIncomplete."""
    found: dict[int, frozenset[bytes]] = {}
    asked: dict[str, Sequence[Body]] = {}
    for fact in decided_facts(reader, codec, "bills"):
        if fact.body.get("topic") != topic:
            continue
        match fact.name:
            case "RecordWrittenOff":
                listed: Sequence[Body] = (fact.body,)
            case "RecordSetWriteOffRequested":
                asked[fact.body["record_set"]] = fact.body["records"]
                continue
            case "RecordSetWrittenOff":
                listed = asked[fact.body["record_set"]]  # its own partition's chain has the request before it
            case _:
                continue
        for record in listed:
            if record["partition"] == partition:
                offset = int(record["offset"])
                found[offset] = found.get(offset, frozenset()) | {bytes(record["sha256"])}
    return found


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
        """Offsets of unreadable records that are not written off: they may be of any tenant (K9)."""
        self.excluded: set[int] = set()
        """Offsets of unreadable records that are written off."""
        self.written_off: set[int] = set()
        """Offsets met whose very bytes are written off, whether or not they can be read by now."""
        self.partition = partition_of(tenant.encode(), TOPICS["usage"].partitions)
        self._written_off: WrittenOffHashes | None = None

    def end(self) -> int:
        """The offset after the last record now."""
        return self._reader.end_offsets("usage")["usage", self.partition]

    def records(self, below: int) -> Iterator[UsageRecord]:
        """The tenant's records below an offset. What cannot be read is noted in `unreadable` and passed over, as in the table."""
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
                continue
            if body.get("tenant") == self._tenant:
                yield usage_record(record, name, body)

    def voids(self, below: int) -> list[tuple[int, str]]:
        """(offset, voided event_id) of the tenant's voids below an offset; others are passed over by their schema id alone."""
        ids = {i.to_bytes(4, "big") for i, s in self._codec.schemas.by_id.items() if s.name == VOIDED}
        found: list[tuple[int, str]] = []
        written_off = self._read_written_off()
        for record in self._reader.read("usage", end=self._only(below)):
            if record.value and record.value[1:5] in ids:
                if record.offset in written_off and self._is_lost(record, written_off[record.offset]):
                    continue
                try:
                    _, body = self._codec.decode(record.value)
                except Undecodable:
                    continue  # noted when the records are read
                if body["tenant"] == self._tenant:
                    found.append((record.offset, str(body["voided"])))
        return found

    def statements(self, asked: Sequence[tuple[Cutoff, PriceBook]]) -> list[Statement]:
        """The statement of each cut-off, in two passes over the log: voids first, then everything once."""
        ends = [cutoff.cuts.get(self.partition, 0) for cutoff, _ in asked]
        below = max(ends, default=0)
        voids = self.voids(below)
        builders = [
            StatementBuilder(cutoff, book, frozenset(event for offset, event in voids if cutoff.knows(self.partition, offset)))
            for cutoff, book in asked
        ]
        for record in self.records(below):
            for builder in builders:
                builder.add(record)
        return [builder.statement() for builder in builders]

    def _read_written_off(self) -> WrittenOffHashes:
        """Before a pass: the reader follows one topic at a time."""
        if self._written_off is None:
            self._written_off = written_off_hashes(self._reader, self._codec, "usage", self.partition)
        return self._written_off

    def _is_lost(self, record: Record, hashes: frozenset[bytes]) -> bool:
        """These very bytes are written off and unreadable. What can be read is counted, written off or not."""
        return sha256(record.value or b"").digest() in hashes and why_unreadable(self._codec.schemas, record.value) is not None

    def _only(self, below: int) -> dict[int, int]:
        return {p: below if p == self.partition else 0 for p in range(TOPICS["usage"].partitions)}


def cutoff_of(cut: Body, excluded: Iterable[int] = ()) -> Cutoff:
    """The cut-off that a `BillCutFixed` pins, without what its bill excluded. Raises UnknownRatingVersion."""
    return Cutoff({c["partition"]: c["offset"] for c in cut["cuts"]}, cut["until"], cut["rating_version"], frozenset(excluded))


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
    if usage.unreadable:
        raise LogIncomplete(
            f"usage/{usage.partition}: nobody can read the records at {sorted(usage.unreadable)[:10]}, and they are not written off (K9)"
        )
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
