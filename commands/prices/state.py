"""A price book: in which currency it is, and its newest version: what it costs, from when on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commands.processor.aggregate_kind import AggregateKind
from events.facts.fact import BookId, Timestamp
from events.facts.prices import Price, PriceBookPublished


@dataclass(frozen=True, slots=True)
class NoBook:
    version: int = 0
    kind: Literal["unknown"] = "unknown"


@dataclass(frozen=True, slots=True)
class OpenBook:
    version: int
    book: BookId
    book_version: int
    currency: str
    effective_from: Timestamp
    prices: tuple[Price, ...]
    kind: Literal["open"] = "open"


BookState = NoBook | OpenBook


def evolve(state: BookState, fact: PriceBookPublished) -> BookState:
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    return OpenBook(fact.version, fact.book, fact.book_version, fact.currency, fact.effective_from, fact.prices)


PRICE_BOOK: AggregateKind[BookState] = AggregateKind("prices", NoBook(), evolve)
