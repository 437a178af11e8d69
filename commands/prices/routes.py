"""The resource of price books: what things cost, from when on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from commands.http.bounds import SlugPath
from commands.http.command_app import CommandApp
from commands.http.operations import command, reading
from commands.prices.answers import BookAnswer, BookShown, book_answer, book_head
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
        reading(routes, "/{book}", BookShown)(self.read)
        command(routes, "POST", "/{book}/versions", BookAnswer, created=True)(self.publish)
        return routes

    def read(self, book: SlugPath, request: Request) -> Response:
        """The newest version that was published, also one that holds only later. A tenant reads its own: /v1/tenants/{tenant}/price-book."""
        call = self._app.authorize(request, "admin")
        return book_answer(call, self._app.aggregates.load(PRICE_BOOK, book))

    def publish(self, book: SlugPath, body: PublishRequest, request: Request) -> Response:
        """Prices from an instant on; never backwards."""
        call = self._app.authorize(request, "admin")
        return self._app.run(call, PUBLISH, book, body.command(BookId(book)), body)


def _answer(state: BookState, _command: PublishPriceBook) -> dict[str, Any]:
    assert isinstance(state, OpenBook)
    return book_head(state)


PUBLISH = CommandHandler(PRICE_BOOK, decide, _answer, created=True)
