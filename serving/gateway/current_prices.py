"""What a tenant's calls cost now: each tenant's price book, and the versions of the books as callers see them.

Which version applies is decided as for bills (`rating.book`). A caller may ask for ten thousand models at once, on the event loop: so
the JSON of a version is written when it is published, once for all models without prices of their own. The fold writes in its own
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
"""How far our clock may be behind the one that dates the facts: a version is kept so long after its replacement."""


@dataclass(frozen=True, slots=True)
class PriceList:
    """The JSON of one version of a book: for the models that it names, and in common for all others. `line` is its line in a snapshot."""

    version: BookVersion
    currency: str
    common: bytes | None
    own: Mapping[str, bytes | None]
    line: bytes

    def pricing(self, model: str) -> bytes | None:
        """The JSON of a model's prices; None when no meter of it has a price."""
        return self.own.get(model, self.common)


@dataclass(frozen=True, slots=True)
class CurrentBook:
    """The versions of one book that are or will be in force."""

    versions: PriceBook
    lists: Mapping[int, PriceList]

    def at(self, instant_us: int) -> PriceList | None:
        version = self.versions.at(instant_us)
        return None if version is None else self.lists[version.number]


class CurrentPrices:
    """Books, and the book of each tenant. One thread writes, any may read."""

    def __init__(self) -> None:
        self._books: dict[str, CurrentBook] = {}
        self._tenants: dict[str, bytes] = {}
        """Each tenant as its line in a snapshot: plain bytes, which Python's collector never looks at."""

    def at(self, tenant: str, instant_us: int) -> PriceList | None:
        """What a tenant pays at an instant, now or later. None while no version is in force, and while the book has another currency
        than the tenant: its usage is held then."""
        tenant_line = self._tenants.get(tenant)
        if tenant_line is None:
            return None
        _, name, currency = orjson.loads(tenant_line)
        book = self._books.get(name)
        prices = None if book is None else book.at(instant_us)
        return prices if prices is not None and prices.currency == currency else None

    # --- what the facts say

    def add_tenant(self, body: Mapping[str, Any]) -> None:
        """`body` is a TenantCreated."""
        written = orjson.dumps((body["tenant"], body["price_book"], body["currency"]))
        self._tenants[body["tenant"]] = bytes(memoryview(written))  # exactly sized: orjson's own bytes keep a kilobyte of memory each

    def add_version(self, body: Mapping[str, Any]) -> None:
        """`body` is a PriceBookPublished. Versions that were replaced before then are forgotten: no book changes backwards."""
        known, added = self._books.get(body["book"]), _price_list(body)
        lists = () if known is None else known.lists.values()
        book = _current_book([*lists, added])
        current = book.at(body["occurred_at"] - CLOCKS_APART_US_MAX)
        start = 0 if current is None else current.version.effective_from
        self._books[body["book"]] = _current_book(p for p in book.lists.values() if p.version.effective_from >= start)

    # --- snapshots

    def lines(self) -> list[bytes]:
        """All of it as it is now: an object for each version of a book, a list for each tenant."""
        return [prices.line for book in self._books.values() for prices in book.lists.values()] + list(self._tenants.values())

    @classmethod
    def load(cls, lines: Iterable[bytes]) -> CurrentPrices:
        """The prices of such lines. Raises ValueError, KeyError, TypeError."""
        found, books = cls(), dict[str, list[PriceList]]()
        for line in lines:
            match orjson.loads(line):
                case [str() as tenant, str(), str()]:
                    found._tenants[tenant] = line
                case version:
                    books.setdefault(version["book"], []).append(_price_list(version))
        found._books = {name: _current_book(lists) for name, lists in books.items()}
        return found


def _current_book(lists: Iterable[PriceList]) -> CurrentBook:
    by_number = {prices.version.number: prices for prices in lists}
    versions = PriceBook(prices.version for prices in by_number.values())
    return CurrentBook(versions, {v.number: by_number[v.number] for v in versions.versions})


SNAPSHOT_FIELDS = ("book", "book_version", "currency", "effective_from", "prices")
"""The fields of a PriceBookPublished that are needed to fold it again."""


def _price_list(body: Mapping[str, Any]) -> PriceList:
    version = book_version(body)

    def pricing(model: str) -> bytes | None:
        prices = ((meter, version.price(model, meter)) for meter in METERS)
        meters = {m: {"amount_micros": p.amount_micros, "per_units": p.per_units} for m, p in prices if p is not None}
        head = {"price_book": body["book"], "book_version": version.number, "currency": body["currency"]}
        return bytes(memoryview(orjson.dumps(head | {"meters": meters}))) if meters else None

    own = {model: pricing(model) for model in {model for model, _ in version.prices} - {ANY_MODEL}}
    line = bytes(memoryview(orjson.dumps({name: body[name] for name in SNAPSHOT_FIELDS})))
    return PriceList(version, body["currency"], pricing(ANY_MODEL), own, line)
