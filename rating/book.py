"""A price book: which price holds for a model's meter at an instant, and what a quantity costs at it."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from events.facts.meters import Meter

ANY_MODEL = "*"
"""The model of a price that holds where a model has none of its own."""


@dataclass(frozen=True, slots=True)
class Price:
    """`amount_micros` per `per_units` of a meter, pro rata."""

    amount_micros: int
    per_units: int

    def __post_init__(self) -> None:
        assert self.amount_micros >= 0 and self.per_units >= 1, "the fact class bounds both"


@dataclass(frozen=True, slots=True)
class BookVersion:
    """One publication of a price book. `position` is where the store decided it: a bill folds only up to its own (K20)."""

    number: int
    effective_from: int
    prices: Mapping[tuple[str, Meter], Price]
    position: int = 0

    def price(self, model: str, meter: Meter) -> Price | None:
        """The model's own price of this meter, else the price of any model, else unknown."""
        return self.prices.get((model, meter)) or self.prices.get((ANY_MODEL, meter))


class PriceBook:
    """The versions of one book in the order in which they take effect; of two at one instant the later publication holds."""

    def __init__(self, versions: Iterable[BookVersion] = ()) -> None:
        newest = {v.effective_from: v for v in sorted(versions, key=lambda v: v.number)}
        self.versions: tuple[BookVersion, ...] = tuple(newest[at] for at in sorted(newest))
        self.bounds: tuple[int, ...] = tuple(v.effective_from for v in self.versions)
        """The instants at which the price may change: version `i` holds in [bounds[i], bounds[i + 1])."""

    def at(self, instant: int) -> BookVersion | None:
        """The version in force at an instant, or None before the first."""
        return self.nth(bisect.bisect_right(self.bounds, instant))

    def nth(self, count: int) -> BookVersion | None:
        """The version in force when `count` bounds have passed: what the table's SQL counts instead of searching."""
        return self.versions[count - 1] if count else None


def book_version(fact: Mapping[str, Any], position: int = 0) -> BookVersion:
    """A `PriceBookPublished` body as a version. Of two prices for one (model, meter) in it the last holds."""
    return BookVersion(
        number=fact["book_version"],
        effective_from=fact["effective_from"],
        prices={(p["model"], p["meter"]): Price(p["amount_micros"], p["per_units"]) for p in fact["prices"]},
        position=position,
    )


def round_half_up(numerator: int, denominator: int) -> int:
    """numerator / denominator to the nearest integer, a half upwards: the only rounding of money in this project.

    It is applied once per line of a statement, to the line's whole quantity, so splitting usage into more facts or more bills changes nothing.
    """
    assert numerator >= 0 and denominator > 0, "a statement's quantities are sums of counts"
    return (2 * numerator + denominator) // (2 * denominator)


def cost_micros(quantity: int, price: Price) -> int:
    """What a line's whole quantity costs, pro rata, in micro-units."""
    return round_half_up(quantity * price.amount_micros, price.per_units)
