"""What things cost: price books and their versions. Topic `prices`, key = book."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from events.facts.fact import DEFAULT_CURRENCY, BookId, Count, DecidedFact, NestedRecord, Timestamp, UserId
from events.facts.meters import Meter


class Price(NestedRecord):
    """`amount_micros` of the book's currency per `per_units` of a meter, pro rata. Model `*` is any model without its own price."""

    model: str
    meter: Meter
    amount_micros: Count
    per_units: Annotated[int, Field(ge=1)] = 1


class PriceBookPublished(DecidedFact):
    """From `effective_from` on, usage is priced by this version, until the next one's."""

    book: BookId
    book_version: Annotated[int, Field(ge=1)]
    currency: str = DEFAULT_CURRENCY
    effective_from: Timestamp
    prices: tuple[Price, ...]
    by: UserId
