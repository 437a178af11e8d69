"""What is answered about a price book."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic import BaseModel, Field

from commands.http.answers import Accepted, state_answer
from commands.http.command_app import AuthorizedCall
from commands.http.problem_answers import rejected_answer
from commands.prices.state import BookState, NoBook, OpenBook
from commands.processor.rejection import missing
from events.facts.accounts import TenantTerms
from events.facts.prices import Price


class BookAnswer(Accepted):
    book: str
    book_version: int
    effective_from: int = Field(description="µs UTC.")
    currency: str


class BookShown(BaseModel):
    """The newest version that was published, also one that holds only later."""

    book: str
    currency: str
    book_version: int = Field(description="0: nothing was published yet.")
    effective_from: int | None = Field(description="µs UTC; null: nothing was published yet.")
    prices: list[Price]


def book_head(state: OpenBook) -> dict[str, Any]:
    return {"book": state.book, "book_version": state.book_version, "effective_from": state.effective_from, "currency": state.currency}


def book_answer(call: AuthorizedCall, state: BookState) -> Response:
    """The book, for a caller who may read it."""
    if isinstance(state, NoBook):
        none = missing(
            "price_book_unknown", "nothing was published in this price book", "book", "check its name, or publish its first version"
        )
        return rejected_answer(none, call.headers)
    return state_answer(call.headers, state.version, {**book_head(state), "prices": [p.model_dump() for p in state.prices]})


def unpublished(call: AuthorizedCall, terms: TenantTerms) -> Response:
    """The book that a tenant pays by, before it has prices."""
    none = {"book": terms.price_book, "currency": terms.currency, "book_version": 0, "effective_from": None, "prices": ()}
    return state_answer(call.headers, 0, none)
