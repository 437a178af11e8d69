"""What a tenant owes for all facts below a cut and before an instant: one line per model, meter and price (K20)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from events.facts.bills import BILL_COUNTERS, BillCounts
from events.facts.meters import METERS, Meter
from rating.book import BookVersion, Price, PriceBook, cost_micros
from rating.rules import RATING_VERSION, BillingClassifier, CopyDetector, UsageRecord, effective_us


class Bucket(NamedTuple):
    """Usage that is priced alike: `bounds_passed` says which version of the book was in force (`PriceBook.nth`)."""

    model: str
    model_version: str
    provider: str
    bounds_passed: int


class LineKey(NamedTuple):
    """What makes a line of a statement one line. A held line has no price: its amount is unknown, it is shown and not charged."""

    model: str
    model_version: str
    provider: str
    meter: Meter
    book_version: int
    amount_per_micros: int
    per_units: int
    held: bool


@dataclass(slots=True)
class Statement:
    """Quantities per line. Amounts are derived, so that they are rounded in one place only."""

    quantities: dict[LineKey, int] = field(default_factory=dict[LineKey, int])
    counts: BillCounts = field(default_factory=BillCounts)
    epochs: frozenset[str] = frozenset()
    """The producer epochs that wrote the tenant's counted records below the cut."""

    def amount_micros(self, line: LineKey) -> int:
        """What the line costs as a whole; 0 where it is held, with the quantity shown beside it."""
        if line.held:
            return 0
        return cost_micros(self.quantities.get(line, 0), Price(line.amount_per_micros, line.per_units))

    @property
    def total_micros(self) -> int:
        return sum(self.amount_micros(line) for line in self.quantities)


class Line(NamedTuple):
    """A line of a bill: how far quantity and amount moved between two statements. Either may be negative: a correction."""

    key: LineKey
    quantity: int
    amount_micros: int


Usage = dict[Bucket, tuple[int, ...]]
"""Summed quantities, in the order of METERS, per bucket."""


def rate(usage: Mapping[Bucket, tuple[int, ...]], book: PriceBook) -> dict[LineKey, int]:
    """Prices each summed meter. A meter nobody used makes no line; a used meter without a price makes a held one, never a zero."""
    lines: dict[LineKey, int] = defaultdict(int)
    for bucket, quantities in usage.items():
        version = book.nth(bucket.bounds_passed)
        for meter, quantity in zip(METERS, quantities, strict=True):
            if quantity:
                lines[_line(bucket, meter, version)] += quantity
    return dict(lines)


def _line(bucket: Bucket, meter: Meter, version: BookVersion | None) -> LineKey:
    number = version.number if version else 0
    price = version.price(bucket.model, meter) if version else None
    amount, units, held = (price.amount_micros, price.per_units, False) if price else (0, 1, True)
    return LineKey(bucket.model, bucket.model_version, bucket.provider, meter, number, amount, units, held)


def difference(now: Statement, before: Statement) -> tuple[Line, ...]:
    """The lines of a bill. Lines that did not move are left out; the order is the lines' own, so that every biller writes the same."""
    lines: list[Line] = []
    for key in sorted(now.quantities.keys() | before.quantities.keys()):
        quantity = now.quantities.get(key, 0) - before.quantities.get(key, 0)
        amount = now.amount_micros(key) - before.amount_micros(key)
        if quantity or amount:
            lines.append(Line(key, quantity, amount))
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Which facts a statement knows: those below `cuts` (partition → offset; one not named is cut at 0), claimed before `until` (µs)."""

    cuts: Mapping[int, int]
    until: int
    rating_version: int = RATING_VERSION
    excluded: frozenset[int] = frozenset()
    """Offsets that the bill of this statement left out, because they could not be read when it was issued."""
    decided_position: int = 0
    """Held usage that two people decided to count up to this position of the store is known, too (K13)."""

    def __post_init__(self) -> None:
        if self.rating_version != RATING_VERSION:
            raise UnknownRatingVersion(f"rating version {self.rating_version} is not known to this program; newest is {RATING_VERSION}")

    def knows(self, partition: int, offset: int) -> bool:
        return offset < self.cuts.get(partition, 0) and offset not in self.excluded


class UnknownRatingVersion(Exception):
    """The bill was cut under rules this program does not have."""


Place = Literal["whole", "repeated", "held", "decided"]
"""A repeated record is a copy, or else held; a decided one would be held, and two people decided to count it."""


class StatementBuilder:
    """Builds one statement from a tenant's records, given one by one in log order. `voided`: see `BillingClassifier`."""

    def __init__(self, cutoff: Cutoff, book: PriceBook, voided: frozenset[str]) -> None:
        self._cutoff, self._book = cutoff, book
        self._classifier, self._copies = BillingClassifier(voided), CopyDetector()
        self._counts = dict.fromkeys(BILL_COUNTERS, 0)
        self._usage: dict[Bucket, list[int]] = {}
        self._epochs: dict[str, list[int]] = {}  # epoch -> [records counted, newest sequence]

    def add(self, record: UsageRecord, place: Place = "whole") -> None:
        """`place`: what the chain of its producer says of the record at this cut-off (K13)."""
        if not self._cutoff.knows(record.partition, record.offset):
            return
        if place == "held" or (place == "repeated" and not self._copies.is_copy(record.event_id, record.sha256)):
            self._counts["held"] += 1
            return
        repeated = self._copies.copy_kind(record.event_id, record.sha256, proven=place != "decided")
        if repeated:
            self._counts[repeated] += 1
            return
        chain = self._epochs.setdefault(record.epoch, [0, 0])
        chain[0], chain[1] = chain[0] + 1, max(chain[1], record.sequence)
        billing_class = self._classifier.classify(record)
        if billing_class == "billed":
            self.bill(record)
        else:
            self._counts[billing_class] += 1

    def bill(self, record: UsageRecord) -> None:
        """Claims a billed record, or carries it to a later bill."""
        effective = effective_us(record.occurred_at, record.append_us)
        self._counts["retimed"] += effective != record.occurred_at
        if effective >= self._cutoff.until:
            self._counts["carried"] += 1
            return
        self._counts["claimed"] += 1
        passed = sum(bound <= effective for bound in self._book.bounds)
        bucket = Bucket(record.model, record.model_version, record.provider, passed)
        sums = self._usage.setdefault(bucket, [0] * len(METERS))
        for i, quantity in enumerate(record.quantities):
            sums[i] += quantity

    def statement(self) -> Statement:
        # Numbers used twice are no gaps; nor may one forged number make a count that no bill can hold.
        self._counts["missing"] = sum(max(0, newest - counted) for counted, newest in self._epochs.values())
        usage = {bucket: tuple(sums) for bucket, sums in self._usage.items()}
        return Statement(rate(usage, self._book), BillCounts(**self._counts), frozenset(self._epochs))


def statement_of(records: Iterable[UsageRecord], cutoff: Cutoff, book: PriceBook) -> Statement:
    """The statement over records already in memory, in any order: they are put in the order of the log first."""
    below = sorted((r for r in records if cutoff.knows(r.partition, r.offset)), key=lambda r: (r.partition, r.offset))
    builder = StatementBuilder(cutoff, book, frozenset(r.voided for r in below if r.voided))
    for record in below:
        builder.add(record)
    return builder.statement()
