"""What a tenant's calls cost now: who pays by which price book, and the books' versions, as they are told to callers.

The rule which version holds is the bills' own (`rating.book`). A caller may ask for ten thousand models at once, on the event loop:
what he is told is written out when a version is published, once for all models without prices of their own. The fold writes in its
thread while others read, so a book is replaced whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from events.facts.meters import METERS
from rating.book import ANY_MODEL, BookVersion, PriceBook, book_version

CLOCKS_APART_US_MAX = 3600 * 1_000_000
"""By how much our clock may be behind the one that dates the facts: so long a version is kept after it was replaced."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """One version of a book, written out: for the models that it names, and in common for all others. `line` is it in a snapshot."""

    version: BookVersion
    currency: str
    common: orjson.Fragment | None
    own: Mapping[str, orjson.Fragment | None]
    line: bytes

    def pricing(self, model: str) -> orjson.Fragment | None:
        """What is told of a model; None when no meter of it has a price."""
        return self.own.get(model, self.common)


@dataclass(frozen=True, slots=True)
class Book:
    """The versions of one book that are or will be in force."""

    versions: PriceBook
    tariffs: Mapping[int, Tariff]

    def at(self, instant: int) -> Tariff | None:
        version = self.versions.at(instant)
        return None if version is None else self.tariffs[version.number]


class Tariffs:
    """Books and who pays by them. One thread writes, any may read."""

    def __init__(self) -> None:
        self._books: dict[str, Book] = {}
        self._payers: dict[str, bytes] = {}
        """Each tenant as its line in a snapshot: plain bytes, which Python's collector never looks at."""

    def at(self, tenant: str, instant: int) -> Tariff | None:
        """What a tenant pays at an instant of now or later. None while nothing is in force, and while the book is in another currency
        than the tenant pays in: its usage is held then."""
        payer = self._payers.get(tenant)
        if payer is None:
            return None
        _, name, currency = orjson.loads(payer)
        book = self._books.get(name)
        tariff = None if book is None else book.at(instant)
        return tariff if tariff is not None and tariff.currency == currency else None

    # --- what the facts say

    def join(self, body: Mapping[str, Any]) -> None:
        """`body` is a TenantCreated."""
        written = orjson.dumps((body["tenant"], body["price_book"], body["currency"]))
        self._payers[body["tenant"]] = bytes(memoryview(written))  # as long as it is: see `Keys.issue`

    def publish(self, body: Mapping[str, Any]) -> None:
        """`body` is a PriceBookPublished. What was replaced before it was said is forgotten: no book changes backwards."""
        known, tariff = self._books.get(body["book"]), _tariff(body)
        tariffs = {} if known is None else dict(known.tariffs)
        book = _book([*tariffs.values(), tariff])
        current = book.at(body["occurred_at"] - CLOCKS_APART_US_MAX)
        start = 0 if current is None else current.version.effective_from
        self._books[body["book"]] = _book(t for t in book.tariffs.values() if t.version.effective_from >= start)

    # --- snapshots

    def lines(self) -> list[bytes]:
        """All of it as it is now: an object for each version of a book, a list for each tenant."""
        return [t.line for book in self._books.values() for t in book.tariffs.values()] + list(self._payers.values())

    @classmethod
    def load(cls, lines: Iterable[bytes]) -> Tariffs:
        """What such lines say. Raises ValueError, KeyError, TypeError."""
        found, books = cls(), dict[str, list[Tariff]]()
        for line in lines:
            match orjson.loads(line):
                case [str() as tenant, str(), str()]:
                    found._payers[tenant] = line
                case said:
                    books.setdefault(said["book"], []).append(_tariff(said))
        found._books = {name: _book(tariffs) for name, tariffs in books.items()}
        return found


def _book(tariffs: Iterable[Tariff]) -> Book:
    by_number = {t.version.number: t for t in tariffs}
    versions = PriceBook(t.version for t in by_number.values())
    return Book(versions, {v.number: by_number[v.number] for v in versions.versions})


KEPT = ("book", "book_version", "currency", "effective_from", "prices")
"""What is needed of a PriceBookPublished to fold it again."""


def _tariff(body: Mapping[str, Any]) -> Tariff:
    version = book_version(body)

    def told(model: str) -> orjson.Fragment | None:
        prices = ((meter, version.price(model, meter)) for meter in METERS)
        meters = {m: {"amount_micros": p.amount_micros, "per_units": p.per_units} for m, p in prices if p is not None}
        head = {"price_book": body["book"], "book_version": version.number, "currency": body["currency"]}
        return orjson.Fragment(bytes(memoryview(orjson.dumps(head | {"meters": meters})))) if meters else None

    own = {model: told(model) for model in {model for model, _ in version.prices} - {ANY_MODEL}}
    line = bytes(memoryview(orjson.dumps({name: body[name] for name in KEPT})))
    return Tariff(version, body["currency"], told(ANY_MODEL), own, line)
