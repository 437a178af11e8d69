"""The request to publish prices, with every bound on it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from commands.http.bounds import RequestBody
from commands.prices.decide import PublishPriceBook
from events.facts.fact import DEFAULT_CURRENCY, INT64_MAX, BookId, Currency
from events.facts.meters import READINGS
from events.facts.prices import Price

_AMOUNT_MICROS_MAX = 10**18
"""Micro-units of currency: what an amount in a fact can hold."""


class PriceRequest(Price):
    @model_validator(mode="after")
    def _payable(self) -> Self:
        """20 CNY an hour, published as 20 000 000 per microsecond, would make a bill that no fact can hold: that tenant could never be
        billed again."""
        if not READINGS[self.meter].measured:
            raise PydanticCustomError("meter_not_measured", "nothing measures {meter} yet: it would be billed as 0", {"meter": self.meter})
        if self.amount_micros * READINGS[self.meter].quantity_max // self.per_units > _AMOUNT_MICROS_MAX:
            price = {"amount": self.amount_micros, "per": self.per_units, "meter": self.meter}
            raise PydanticCustomError("price_too_high", "{amount} micro-units per {per} of {meter} is more than a bill can hold", price)
        return self


class PublishRequest(RequestBody):
    currency: Currency = DEFAULT_CURRENCY
    effective_from: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = Field(
        None, description="µs UTC; none: now. Up to five minutes back is taken as now: prices never change backwards."
    )
    prices: Annotated[tuple[PriceRequest, ...], Field(min_length=1, max_length=10_000)]

    def command(self, book: BookId) -> PublishPriceBook:
        return PublishPriceBook(book, self.currency, self.effective_from, tuple(Price(**p.shared(Price)) for p in self.prices))
