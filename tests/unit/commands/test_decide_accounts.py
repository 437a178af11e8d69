"""Decisions about tenants, keys, price books and bills."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from commands.bills import decide as bill_decide
from commands.bills.decide import CompleteBill, FixCut
from commands.bills.state import BILLS, BillState, Issued, NoBills
from commands.prices import decide as price_book_decide
from commands.prices.decide import PAST_TOLERANCE_US, PublishPriceBook
from commands.prices.state import PRICE_BOOK, BookState, NoBook
from commands.tenants import decide as tenant_decide
from commands.tenants.decide import KEYS_MAX, CreateTenant, IssueApiKey, RevokeApiKey
from commands.tenants.state import TENANT, ActiveTenant, NoTenant, TenantState
from events.facts.accounts import KeyGrant, TenantTerms
from events.facts.bills import BILL_COUNTERS, BillCounts, BillCutFixed, BillIssued, BillLine, BillLinesListed, BillResult, Cut, CutPins
from events.facts.fact import NO_HASH, BookId, KeyId, TenantId, UserId
from events.facts.prices import Price
from events.schema.codec import FRAME_BYTES_MAX
from rating.bill import Bill
from rating.statement import Line, LineKey
from tests.support.decisions import NOW, Rules, given
from tests.support.todays_codec import todays_codec

DAY = 86_400_000_000


bill = Rules(bill_decide.decide, BILLS.evolve)
price_book = Rules(price_book_decide.decide, PRICE_BOOK.evolve)
tenant = Rules(tenant_decide.decide, TENANT.evolve)

# --- tenants

CREATE = CreateTenant(TenantId("acme"), TenantTerms(display_name="Acme"))


def issue(key: str, **changes: Any) -> IssueApiKey:
    return IssueApiKey(KeyId(key), "0" * 64, UserId("u"), KeyGrant(scopes=("invoke",), **changes))


ACME: TenantState = given(tenant, NoTenant(), CREATE).state


def test_a_tenant_pays_in_the_currency_of_its_book() -> None:
    given(tenant, NoTenant()).when(replace(CREATE, book_currency="USD")).then_rejected("currency_differs")
    assert given(tenant, NoTenant(), replace(CREATE, book_currency="CNY")).state == ACME


def test_a_tenant_is_created_once() -> None:
    given(tenant, ACME).when(CREATE).then_rejected("tenant_exists")
    given(tenant, NoTenant()).when(issue("k1")).then_rejected("tenant_unknown")


def test_a_key_that_has_ended_is_not_issued() -> None:
    given(tenant, ACME).when(issue("k1", expires_at=NOW)).then_rejected("expires_in_past")
    given(tenant, ACME).when(issue("k1", expires_at=NOW + 1)).then_accepted()


def test_a_key_is_revoked_once_and_only_if_it_exists() -> None:
    state = given(tenant, ACME, issue("k1")).state
    revoked = given(tenant, state, RevokeApiKey(KeyId("k1"), "leaked")).state
    given(tenant, revoked).when(RevokeApiKey(KeyId("k1"), "")).then_rejected("already_revoked")
    given(tenant, state).when(RevokeApiKey(KeyId("k2"), "")).then_rejected("key_unknown")


def test_a_tenant_has_a_bounded_number_of_working_keys() -> None:
    assert isinstance(ACME, ActiveTenant)
    full = replace(ACME, keys={f"k{i}": None for i in range(KEYS_MAX)})
    given(tenant, full).when(issue("one-more")).then_rejected("too_many_keys")
    one_ended = replace(full, keys={**full.keys, "k0": NOW - 1})
    given(tenant, one_ended).when(issue("one-more")).then_accepted()


# --- price books


def publish(start: int | None, *prices: Price, currency: str = "CNY") -> PublishPriceBook:
    given = prices or (Price(model="*", meter="calls", amount_micros=1000),)
    return PublishPriceBook(BookId("standard"), currency, start, given)


BOOK: BookState = given(price_book, NoBook(), publish(NOW + DAY)).state


def test_versions_of_a_book_are_counted_from_one() -> None:
    (fact,) = given(price_book, BOOK).when(publish(NOW + 2 * DAY)).facts
    assert (fact.book_version, fact.version, fact.effective_from) == (2, 2, NOW + 2 * DAY)


def test_prices_never_change_in_the_past() -> None:
    given(price_book, NoBook()).when(publish(NOW - PAST_TOLERANCE_US - 1)).then_rejected("effective_in_past")
    given(price_book, BOOK).when(publish(NOW + DAY)).then_rejected("effective_before_last")


def test_a_start_slightly_in_the_past_becomes_the_time_of_the_decision() -> None:
    for given_start in (NOW - PAST_TOLERANCE_US, NOW - 1, NOW, None):
        (fact,) = given(price_book, NoBook()).when(publish(given_start)).facts
        assert fact.effective_from == NOW


def test_all_violations_of_a_price_book_are_reported_at_once() -> None:
    twice = Price(model="*", meter="calls", amount_micros=1)
    book = publish(0, twice, twice, Price(model="m", meter="calls", amount_micros=1), twice)
    rejected = given(price_book, NoBook()).when(book).then_rejected("effective_in_past")
    assert [(v.code, v.field) for v in rejected.violations] == [
        ("effective_in_past", "effective_from"),
        ("price_twice", "prices.1"),
        ("price_twice", "prices.3"),
    ]


def test_a_price_version_that_starts_in_the_far_future_is_refused() -> None:
    given(price_book, BOOK).when(publish(NOW * 1000)).then_rejected("effective_too_late")
    given(price_book, BOOK).when(publish(NOW + 3000 * DAY)).then_accepted()


def test_a_book_keeps_its_currency() -> None:
    given(price_book, BOOK).when(publish(NOW + 2 * DAY, currency="USD")).then_rejected("currency_changed")


# --- bills

LINE = BillLine(
    model="m",
    model_version="1.0.0",
    provider="acme",
    meter="calls",
    book_version=1,
    amount_per_micros=1000,
    per_units=1,
    quantity=2,
    amount_micros=2000,
)
COUNTS = dict.fromkeys(BILL_COUNTERS, 0)


def fix(period: str = "2027-01", start: int = NOW - DAY, end: int = NOW + DAY, ends: int = 10, log: str = "log") -> FixCut:
    cuts = tuple(Cut(partition=p, offset=ends) for p in range(4))
    pins = CutPins(
        period=period,
        log_id=log,
        cuts=cuts,
        decided_position=7,
        producers_offset=3,
        rating_version=1,
        price_book=BookId("standard"),
        currency="CNY",
    )
    return FixCut(TenantId("acme"), start, end, pins)


def completion(cut: BillCutFixed, **changes: Any) -> CompleteBill:
    line = Line(LineKey("m", "1.0.0", "acme", "calls", 1, 1000, 1, False), 2, 2000)
    digest = Bill(cut.model_dump(), (line,), 2000, {**COUNTS, "claimed": 2}, 0).digest()
    result = BillResult(number=cut.number, cut_event_id=cut.event_id, total_micros=2000, facts=BillCounts(claimed=2), producers_open=0)
    result = result.model_copy(update={name: changes.pop(name) for name in BillResult.model_fields if name in changes})
    return replace(CompleteBill(cut.period, digest, (LINE,), result), **changes)


CUT: BillState = given(bill, NoBills(), fix()).state


def fixed(state: BillState) -> BillCutFixed:
    assert not isinstance(state, NoBills)
    return state.cut


def test_amounts_of_one_currency_are_never_billed_in_another() -> None:
    given(bill, NoBills()).when(replace(fix(), book_currency="USD")).then_rejected("currency_differs")
    assert given(bill, NoBills(), replace(fix(), book_currency="CNY")).state == CUT


def issued(state: BillState = CUT) -> BillState:
    return given(bill, state, completion(fixed(state))).state


def test_a_running_period_is_billed_up_to_now_and_an_ended_one_up_to_its_end() -> None:
    assert fixed(CUT).until == NOW
    assert fixed(given(bill, NoBills(), fix(end=NOW - 5)).state).until == NOW - 5
    given(bill, NoBills()).when(fix(start=NOW + 1)).then_rejected("period_not_begun")


def test_one_bill_at_a_time() -> None:
    given(bill, CUT).when(fix()).then_rejected("cut_open")


def test_the_next_bill_names_the_one_before() -> None:
    first = issued()
    second = fixed(given(bill, first, fix(ends=20), now=NOW + 1).state)
    assert isinstance(first, Issued)
    assert (fixed(first).previous_bill_sha256, second.number, second.previous_bill_sha256) == (NO_HASH, 2, first.digest)


def test_cuts_and_instants_only_grow() -> None:
    state = issued()
    earlier = given(bill, state).when(fix(period="2026-12", end=NOW - 1, ends=11), now=NOW + DAY)
    assert earlier.facts[0].until == NOW  # late usage of a period that ended before the last bill's end
    given(bill, state).when(fix(ends=9), now=NOW + 1).then_rejected("log_shrunk")
    given(bill, state).when(fix(log="another"), now=NOW + 1).then_rejected("log_shrunk")
    given(bill, state).when(fix(end=NOW), now=NOW + 1).then_accepted()  # late usage of the same period


def test_a_cut_made_with_a_fast_clock_blocks_no_later_bill() -> None:
    fast = issued(given(bill, NoBills(), fix(end=NOW + DAY), now=NOW + 600_000_000).state)
    later = given(bill, fast).when(fix(ends=20, end=NOW + DAY), now=NOW + 1)
    assert later.facts[0].until == NOW + 600_000_000


@pytest.mark.parametrize("ahead_us", [600_000_000, 40 * DAY], ids=["ten minutes over midnight", "forty days"])
def test_a_fast_clock_that_began_a_later_period_blocks_no_bill_of_this_one_or_the_next(ahead_us: int) -> None:
    midnight = NOW + 300_000_000  # where this period ends
    later_end = NOW + 50 * DAY
    fast = issued(given(bill, NoBills(), fix(period="2027-02", start=midnight, end=later_end), now=NOW + ahead_us).state)
    assert fixed(fast).until == NOW + ahead_us
    # With the clock put right, this period is billed while it runs and when it is over, and then the later one.
    state, ends = fast, 20
    for period, start, end, now in (
        ("2027-01", NOW - DAY, midnight, NOW + 1),
        ("2027-01", NOW - DAY, midnight, midnight + 1),
        ("2027-02", midnight, later_end, midnight + DAY),
        ("2027-02", midnight, later_end, later_end + 1),
    ):
        before = fixed(state)
        state = issued(given(bill, state, fix(period=period, start=start, end=end, ends=ends), now=now).state)
        assert fixed(state).number == before.number + 1 and fixed(state).until >= before.until
        ends += 10
    assert fixed(state).until == later_end


def test_a_bill_is_issued_as_it_was_computed() -> None:
    (fact,) = given(bill, CUT).when(completion(fixed(CUT))).facts
    assert isinstance(fact, BillIssued)
    assert (fact.number, fact.total_micros, fact.facts.claimed, fact.lines) == (1, 2000, 2, (LINE,))


def test_a_bill_that_does_not_fit_into_one_record_is_listed_before_it_is_issued() -> None:
    keys = [LineKey("模" * 200, f"1.0.{i}", "p" * 200, "calls", 1, 1, 1, False) for i in range(5000)]
    lines = tuple(BillLine(**key._asdict(), quantity=i, amount_micros=i) for i, key in enumerate(keys))
    total = sum(line.amount_micros for line in lines)
    given_start = tuple(Line(key, i, i) for i, key in enumerate(keys))
    digest = Bill(fixed(CUT).model_dump(), given_start, total, COUNTS, 0).digest()
    *listed, last = given(bill, CUT).when(completion(fixed(CUT), lines=lines, total_micros=total, digest=digest, facts=BillCounts())).facts
    assert isinstance(last, BillIssued)
    assert len(listed) > 5
    assert all(isinstance(part, BillLinesListed) for part in listed)
    assert (*(line for part in listed for line in part.lines), *last.lines) == lines
    assert (last.lines_before, last.version) == (5000 - len(last.lines), CUT.version + len(listed) + 1)
    state = CUT
    codec = todays_codec()
    for fact in (*listed, last):
        assert len(codec.encode(fact, "bills")) <= FRAME_BYTES_MAX
        state = bill.evolve(state, fact)
    assert isinstance(state, Issued)


def test_many_billers_issue_one_bill() -> None:
    state = issued()
    assert given(bill, state).when(completion(fixed(state))).outcome == ()
    other = completion(fixed(state), digest=hashlib.sha256(b"other").digest())
    given(bill, state).when(other).then_rejected("digest_differs")


def test_a_bill_with_a_wrong_sum_or_digest_is_refused() -> None:
    given(bill, CUT).when(completion(fixed(CUT), total_micros=1999)).then_rejected("total_differs")
    given(bill, CUT).when(completion(fixed(CUT), producers_open=1)).then_rejected("digest_wrong")
    given(bill, CUT).when(completion(fixed(CUT), excluded=(4,))).then_rejected("digest_wrong")
    given(bill, CUT).when(completion(fixed(CUT), excluded=(4, 4))).then_rejected("not_in_order")


def test_a_bill_answers_exactly_the_open_cut() -> None:
    given(bill, NoBills()).when(completion(fixed(CUT))).then_rejected("no_cut")
    for change in ({"number": 2}, {"cut_event_id": "x"}, {"period": "2027-02"}):
        given(bill, CUT).when(completion(fixed(CUT), **change)).then_rejected("no_such_cut")
