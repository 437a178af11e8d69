"""The resource of price books: what things cost, from when on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from commands.http.answers import CREATED
from commands.http.bounds import SlugPath
from commands.http.command_app import CommandApp
from commands.prices.decide import PublishPriceBook, decide
from commands.prices.requests import PublishRequest
from commands.prices.state import PRICE_BOOK, BookState, OpenBook
from commands.processor.command_handler import CommandHandler
from events.facts.fact import BookId


class PriceBooks:
    """What things cost, from when on."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/price-books", tags=["prices"])
        routes.post("/{book}/versions", status_code=201, responses=CREATED)(self.publish)
        return routes

    def publish(self, book: SlugPath, body: PublishRequest, request: Request) -> Response:
        """Prices from an instant on; never backwards."""
        call = self._app.authorize(request, "admin")
        return self._app.run(call, PUBLISH, book, body.command(BookId(book)), body)


def _answer(state: BookState, _command: PublishPriceBook) -> dict[str, Any]:
    assert isinstance(state, OpenBook)
    return {"book": state.book, "book_version": state.book_version, "effective_from": state.effective_from, "currency": state.currency}


PUBLISH = CommandHandler(PRICE_BOOK, decide, _answer, created=True)
