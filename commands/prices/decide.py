"""Which prices may be published: they change from an instant on, never backwards."""

from __future__ import annotations

from dataclasses import dataclass

from commands.prices.state import BookState, NoBook, OpenBook
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict
from events.facts.fact import BookId, Timestamp
from events.facts.prices import Price, PriceBookPublished
from events.process.problem import Violation

PAST_TOLERANCE_US = 300_000_000
"""A caller's clock may be behind ours by this much: what it calls now is our now. Further back it is meant, and refused."""

FUTURE_US_MAX = 10 * 366 * 86_400_000_000
"""Versions start one after another and none is taken back: one slip into nanoseconds would close the book for ever."""


@dataclass(frozen=True, slots=True)
class PublishPriceBook:
    """`effective_from` None, or a little in the past: from now on."""

    book: BookId
    currency: str
    effective_from: Timestamp | None
    prices: tuple[Price, ...]


def decide(state: BookState, command: PublishPriceBook, context: CommandContext) -> tuple[PriceBookPublished, ...] | Rejected:
    start = context.now if command.effective_from is None else command.effective_from
    violations = _violations(command, start, context.now)
    if violations:
        return Rejected("invalid", violations)
    start = max(start, context.now)  # never earlier: what was counted, or is on a bill, would be priced anew on the next one
    if isinstance(state, OpenBook):
        if state.currency != command.currency:
            return conflict(
                "currency_changed", f"book {state.book} is in {state.currency}", "currency", "publish another book for another currency"
            )
        if start <= state.effective_from:
            message = f"version {state.book_version} starts at {state.effective_from}, not before {start}"
            return conflict("effective_before_last", message, "effective_from", "start after the last version does")
    number = 1 if isinstance(state, NoBook) else state.book_version + 1
    fact = PriceBookPublished(
        **context.head(state.version + 1),
        book=command.book,
        book_version=number,
        currency=command.currency,
        effective_from=start,
        prices=command.prices,
        by=context.by,
    )
    return (fact,)


def _violations(c: PublishPriceBook, start: Timestamp, now: Timestamp) -> tuple[Violation, ...]:
    found: list[Violation] = []
    if start < now - PAST_TOLERANCE_US:
        found.append(
            Violation("effective_in_past", "prices never change backwards", "effective_from", "give an instant from now on, in µs UTC")
        )
    if start > now + FUTURE_US_MAX:
        found.append(
            Violation(
                "effective_too_late", "prices start within ten years", "effective_from", "give an instant in µs UTC, not in nanoseconds"
            )
        )
    seen: set[tuple[str, str]] = set()
    for i, price in enumerate(c.prices):
        if (price.model, price.meter) in seen:
            found.append(
                Violation("price_twice", f"{price.model} {price.meter} has two prices", f"prices.{i}", "keep one price per model and meter")
            )
        seen.add((price.model, price.meter))
    return tuple(found)
