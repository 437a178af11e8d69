"""The prices that a caller sees: those of the book's version in force now, or none; a missing price is never shown as zero."""

from __future__ import annotations

from itertools import islice
from typing import Any

import orjson
import pytest

from events.log.record import Coordinate
from serving.gateway.current_prices import CLOCKS_APART_US_MAX, CurrentPrices
from serving.gateway.routes import Routes

AT = Coordinate("prices", 0, 0)
NOW = 1_800_000_000_000_000
HOUR = 3600 * 1_000_000
DIGITS, OTHER = "model-vision-core-digits", "model-vision-core-other"

NamedFact = tuple[str, dict[str, Any]]


def tenant(name: str, book: str = "standard", currency: str = "CNY") -> NamedFact:
    return "TenantCreated", {"tenant": name, "display_name": name, "price_book": book, "currency": currency, "occurred_at": NOW}


def published(number: int, effective_from: int, *prices: tuple[str, str, int, int], decided_at: int = NOW, **more: Any) -> NamedFact:
    named = [{"model": m, "meter": meter, "amount_micros": amount, "per_units": per} for m, meter, amount, per in prices]
    body = {"book": "standard", "book_version": number, "currency": "CNY", "effective_from": effective_from, "prices": named}
    return "PriceBookPublished", {**body, "occurred_at": decided_at, "by": "admin", **more}


def routes_after(*facts: NamedFact) -> Routes:
    routes = Routes()
    for name, body in facts:
        routes.apply(name, body, AT)
    return routes


def pricing(routes: Routes, model: str = DIGITS, payer: str = "acme", at: int = NOW) -> Any:
    prices = routes.prices.at(payer, at)
    written = None if prices is None else prices.pricing(model)
    return None if written is None else orjson.loads(written)


def calls(routes: Routes, **asked: Any) -> int | None:
    """What a call costs."""
    found = pricing(routes, **asked)
    return None if found is None else found["meters"]["calls"]["amount_micros"]


def restored(routes: Routes) -> Routes:
    copy = Routes()
    copy.load(b"".join(routes.dump()))
    return copy


BOOK = published(1, NOW, ("*", "calls", 500, 1), ("*", "cpu_us", 3, 1_000_000), (DIGITS, "calls", 900, 1000))


def test_a_model_has_its_own_prices_and_those_of_any_model_for_its_other_meters() -> None:
    routes = routes_after(tenant("acme"), BOOK)
    cpu = {"amount_micros": 3, "per_units": 1_000_000}
    head = {"price_book": "standard", "book_version": 1, "currency": "CNY"}
    assert pricing(routes, DIGITS) == {**head, "meters": {"calls": {"amount_micros": 900, "per_units": 1000}, "cpu_us": cpu}}
    assert pricing(routes, OTHER) == {**head, "meters": {"calls": {"amount_micros": 500, "per_units": 1}, "cpu_us": cpu}}


def test_what_all_models_cost_is_written_out_once() -> None:
    prices = routes_after(tenant("acme"), BOOK).prices.at("acme", NOW)
    assert prices is not None and prices.pricing("one") is prices.pricing("another") is not prices.pricing(DIGITS)


def test_a_price_of_zero_is_shown_and_no_price_is_not_zero() -> None:
    assert calls(routes_after(tenant("acme"), published(1, NOW, (DIGITS, "calls", 0, 1)))) == 0
    assert pricing(routes_after(tenant("acme"), published(1, NOW, (DIGITS, "calls", 0, 1))), OTHER) is None
    assert pricing(routes_after(tenant("acme"), published(1, NOW))) is None


def test_a_version_holds_from_its_instant_until_the_next_ones() -> None:
    first, second = published(1, NOW, ("*", "calls", 1, 1)), published(2, NOW + HOUR, ("*", "calls", 2, 1))
    routes = routes_after(tenant("acme"), first, second)
    prices = [calls(routes, at=at) for at in (NOW - 1, NOW, NOW + HOUR - 1, NOW + HOUR)]
    assert prices == [None, 1, 1, 2]
    assert [calls(restored(routes), at=at) for at in (NOW - 1, NOW, NOW + HOUR - 1, NOW + HOUR)] == prices


def test_an_unknown_tenant_an_unknown_book_and_one_in_another_currency_price_nothing() -> None:
    routes = routes_after(BOOK, tenant("lost", "no-such-book"), tenant("abroad", currency="EUR"))
    assert [pricing(routes, payer=payer) for payer in ("nobody", "lost", "abroad")] == [None, None, None]


def test_a_book_may_be_published_after_its_tenants_came() -> None:
    routes = routes_after(tenant("acme"))
    assert pricing(routes) is None
    routes.apply(*BOOK, AT)
    assert calls(routes) == 900


def test_a_version_is_forgotten_when_no_clock_can_still_need_it() -> None:
    routes = routes_after(
        tenant("acme"), *(published(n, NOW + n * HOUR, ("*", "calls", n, 1), decided_at=NOW + n * HOUR) for n in range(1, 50))
    )
    assert CLOCKS_APART_US_MAX == HOUR and len(routes.prices.lines()) == 3
    assert [calls(routes, at=NOW + n * HOUR) for n in (47, 48, 49, 50)] == [None, 48, 49, 49]


def test_a_price_list_in_use_sees_nothing_of_the_next_publication() -> None:
    routes = routes_after(tenant("acme"), BOOK)
    prices = routes.prices.at("acme", NOW)
    routes.apply(*published(2, NOW, ("*", "calls", 7, 1)), AT)
    assert prices is not None and prices.version.number == 1
    assert orjson.loads(prices.pricing(OTHER) or b"")["meters"]["calls"]["amount_micros"] == 500
    assert (calls(routes), calls(routes, model=OTHER)) == (7, 7)


def test_a_snapshot_has_the_prices_of_its_moment_however_slowly_it_is_written() -> None:
    many = 5000  # more than one slice
    routes = routes_after(tenant('a"\n钱'), *(tenant(f"t{n}") for n in range(many)), BOOK)
    slices: list[bytes] = []
    pieces = routes.dump()
    for n in range(3):
        routes.apply(*tenant(f"late{n}"), AT)
        routes.apply(*published(2 + n, NOW, ("*", "calls", 7, 1)), AT)
        slices += islice(pieces, 1)
    slices += pieces
    then = Routes()
    then.load(b"".join(slices))
    assert pricing(then, payer='a"\n钱') == pricing(routes_after(tenant("acme"), BOOK))
    assert (calls(then, payer=f"t{many - 1}"), calls(then, payer="late0")) == (900, None)
    assert (calls(routes, payer="t0"), calls(routes, payer="late0")) == (7, 7)
    assert b"".join(restored(routes).dump()) == b"".join(routes.dump())


@pytest.mark.parametrize("line", [b"", b"7", b"{}", b'["acme","standard"]', b'["acme","standard",7]', b'{"book":"standard"}'])
def test_a_line_of_another_shape_is_not_taken(line: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        CurrentPrices.load([line])
