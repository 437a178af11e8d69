"""What other features ask of price books before they decide."""

from __future__ import annotations

from commands.prices.state import PRICE_BOOK, OpenBook
from commands.processor.aggregates import Aggregates
from events.facts.fact import BookId


def book_currency(aggregates: Aggregates, book: BookId) -> str:
    """Empty when there is no such book."""
    state = aggregates.load(PRICE_BOOK, book)
    return state.currency if isinstance(state, OpenBook) else ""
