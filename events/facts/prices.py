"""What things cost: price books and their versions. Topic `prices`, key = book."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from events.facts.fact import DEFAULT_CURRENCY, BookId, DecidedFact, Line, NestedRecord, Timestamp, UserId
from events.facts.meters import Meter


class Price(NestedRecord):
    """`amount_micros` of the book's currency per `per_units` of a meter, pro rata. Model `*` is any model without its own price."""

    # The one list of these fields: request, command and fact are made from it.
    model: Line
    meter: Meter
    amount_micros: Annotated[int, Field(ge=0, le=10**15)]
    per_units: Annotated[int, Field(ge=1, le=10**15)] = 1


class PriceBookPublished(DecidedFact):
    """From `effective_from` on, usage is priced by this version, until the next one's."""

    book: BookId
    book_version: Annotated[int, Field(ge=1)]
    currency: str = DEFAULT_CURRENCY
    effective_from: Timestamp
    prices: tuple[Price, ...]
    by: UserId
