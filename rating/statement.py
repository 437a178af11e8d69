"""What a tenant owes for all facts below a cut and before an instant: one line per model, meter and price (K20)."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from events.facts.bills import BILL_COUNTERS, BillCounts
from events.facts.meters import METERS, Meter
from rating.book import BookVersion, Price, PriceBook, cost_micros
from rating.event_ids import EventIds
from rating.rules import (
    EARLY_US_MAX,
    INT64_MIN,
    KEY_WINDOW_US,
    LATE_US_MAX,
    RATING_VERSION,
    BillingClassifier,
    CopyDetector,
    KeyWindows,
    ReachesBack,
    UsageRecord,
    effective_us,
)


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


class Carried(NamedTuple):
    """A billed record that no bill has claimed yet."""

    effective: int
    model: str
    model_version: str
    provider: str
    quantities: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StatementState:
    """All that a builder needs to go on behind the records that it was given: what K20 says of them, in bounded space but for `ids`."""

    until: int
    counts: Mapping[str, int]
    usage: Usage
    bounds: tuple[int, ...]
    """Of the book: those that `usage` was told apart by."""
    newest_claimed: int
    """µs UTC, as the two below."""
    newest_append: int
    keys_from: int
    keys: Mapping[bytes, tuple[int, ...]]
    """As `KeyWindows` takes them."""
    epochs: Mapping[str, tuple[int, int]]
    voided: frozenset[str]
    carried: tuple[Carried, ...]
    ids: EventIds


CARRIED_MAX, KEYS_MAX, VOIDED_MAX = 100_000, 200_000, 100_000
"""Of a state, about 30 MB each; a tenant who has more has none."""
KEYS_KEPT_US = LATE_US_MAX + EARLY_US_MAX + KEY_WINDOW_US
"""How far before the newest append time a billed key may matter to a record that is appended later."""
NOTHING = StatementState(0, dict.fromkeys(BILL_COUNTERS, 0), {}, (), 0, 0, INT64_MIN, {}, {}, frozenset(), (), EventIds())


class StatementBuilder:
    """Builds one statement from a tenant's records, given one by one in log order. `voided`: see `BillingClassifier`. With `after` the records are
    those behind the state, and so is what they void; raises ReachesBack where the records before would have to be looked at."""

    def __init__(self, cutoff: Cutoff, book: PriceBook, voided: frozenset[str], after: StatementState = NOTHING) -> None:
        self._cutoff, self._book, self._after = cutoff, book, after
        self._voided = voided | after.voided
        self._classifier = BillingClassifier(self._voided, KeyWindows(after.keys, after.keys_from))
        self._copies, self._counts, self._newest_append = CopyDetector(), dict(after.counts), after.newest_append
        self._usage = {bucket: list(sums) for bucket, sums in after.usage.items()}
        self._newest_claimed = after.newest_claimed
        self._epochs = {epoch: [counted, newest] for epoch, (counted, newest) in after.epochs.items()}  # records counted, newest sequence
        self._carried: list[Carried] = []
        if after.usage and (cutoff.until < after.until or _passed(book, after.newest_claimed) != after.bounds):
            raise ReachesBack("what was claimed before is told apart by other instants")
        if any(event_id in after.ids for event_id in voided - after.voided):
            raise ReachesBack("a void names an execution before")
        self._counts["carried"] = 0
        for record in after.carried:
            self._claim(record)

    def add(self, record: UsageRecord, place: Place = "whole") -> None:
        """`place`: what the chain of its producer says of the record at this cut-off (K13)."""
        if not self._cutoff.knows(record.partition, record.offset):
            return
        self._newest_append = max(self._newest_append, record.append_us)
        if place != "held" and record.event_id in self._after.ids:
            raise ReachesBack(f"{record.partition}/{record.offset} has the event_id of a record before")
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
        self._claim(Carried(effective, record.model, record.model_version, record.provider, record.quantities))

    def _claim(self, billed: Carried) -> None:
        if billed.effective >= self._cutoff.until:
            self._counts["carried"] += 1
            if len(self._carried) <= CARRIED_MAX:
                self._carried.append(billed)
            return
        self._counts["claimed"] += 1
        self._newest_claimed = max(self._newest_claimed, billed.effective)
        passed = bisect_right(self._book.bounds, billed.effective)
        bucket = Bucket(billed.model, billed.model_version, billed.provider, passed)
        sums = self._usage.setdefault(bucket, [0] * len(METERS))
        for i, quantity in enumerate(billed.quantities):
            sums[i] += quantity

    def statement(self) -> Statement:
        # Numbers used twice are no gaps; nor may one forged number make a count that no bill can hold.
        missing = sum(max(0, newest - counted) for counted, newest in self._epochs.values())
        return Statement(rate(self._sums(), self._book), BillCounts(**self._counts | {"missing": missing}), frozenset(self._epochs))

    def state(self) -> StatementState | None:
        """To go on from, behind the cut of this statement. None where it would hold more than the bounds allow."""
        keys_from = max(self._classifier.windows.known_from, self._newest_append - KEYS_KEPT_US)
        keys = self._classifier.windows.billed_from(keys_from)
        if len(self._carried) > CARRIED_MAX or len(keys) > KEYS_MAX or len(self._voided) > VOIDED_MAX:
            return None
        return StatementState(
            self._cutoff.until,
            dict(self._counts),
            self._sums(),
            _passed(self._book, self._newest_claimed),
            self._newest_claimed,
            self._newest_append,
            keys_from,
            keys,
            {epoch: (counted, newest) for epoch, (counted, newest) in self._epochs.items()},
            self._voided,
            tuple(self._carried),
            self._after.ids.with_added(self._copies.event_ids),
        )

    def _sums(self) -> Usage:
        return {bucket: tuple(sums) for bucket, sums in self._usage.items()}


def _passed(book: PriceBook, effective: int) -> tuple[int, ...]:
    """The bounds of a book at or before an instant."""
    return book.bounds[: bisect_right(book.bounds, effective)]


def statement_of(records: Iterable[UsageRecord], cutoff: Cutoff, book: PriceBook) -> Statement:
    """The statement over records already in memory, in any order: they are put in the order of the log first."""
    below = sorted((r for r in records if cutoff.knows(r.partition, r.offset)), key=lambda r: (r.partition, r.offset))
    builder = StatementBuilder(cutoff, book, frozenset(r.voided for r in below if r.voided))
    for record in below:
        builder.add(record)
    return builder.statement()
