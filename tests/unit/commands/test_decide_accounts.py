"""Tenants, keys, price books and bills, as sentences."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from commands.bills import decide as bill
from commands.bills.decide import AlreadyIssued, BillState, CompleteBill, FixCut, NoBills
from commands.prices import decide as price_book
from commands.prices.decide import PAST_TOLERANCE_US, BookState, NoBook, PublishPriceBook
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected
from commands.tenants import decide as tenant
from commands.tenants.decide import CreateTenant, IssueApiKey, NoTenant, RevokeApiKey, TenantState
from events.facts.accounts import KeyDimensions
from events.facts.bills import BILL_COUNTERS, BillCounts, BillCutFixed, BillIssued, BillLine, BillLinesListed, Cut
from events.facts.fact import NO_HASH, BookId, KeyId, TenantId, UserId
from events.facts.prices import Price
from events.schema.codec import FRAME_BYTES_MAX
from rating.bill import Bill
from rating.statement import Line, LineKey
from tests.support.todays_codec import todays_codec

NOW = 1_800_000_000_000_000
DAY = 86_400_000_000


def at(now: int = NOW) -> CommandContext:
    return CommandContext("00000000-0000-4000-8000-000000000000", now, UserId("admin"), "", "")


def refused(decision: object) -> str:
    assert isinstance(decision, Rejected), decision
    assert all(v.remedy for v in decision.violations)
    return decision.code


def after(module: Any, state: Any, *commands: Any, now: int = NOW) -> Any:
    for command in commands:
        facts = module.decide(state, command, at(now))
        assert not isinstance(facts, Rejected), (command, facts)
        for fact in facts:
            state = module.evolve(state, fact)
    return state


# --- tenants

CREATE = CreateTenant(TenantId("acme"), "Acme", BookId("standard"), "CNY", "Asia/Shanghai")


def issue(key: str, **changes: Any) -> IssueApiKey:
    return replace(IssueApiKey(KeyId(key), "0" * 64, UserId("u"), ("invoke",), KeyDimensions(), {}, None), **changes)


ACME: TenantState = after(tenant, NoTenant(), CREATE)


def test_a_tenant_pays_in_the_currency_of_its_book() -> None:
    assert refused(tenant.decide(NoTenant(), replace(CREATE, book_currency="USD"), at())) == "currency_differs"
    assert after(tenant, NoTenant(), replace(CREATE, book_currency="CNY")) == ACME


def test_a_tenant_is_created_once() -> None:
    assert refused(tenant.decide(ACME, CREATE, at())) == "tenant_exists"
    assert refused(tenant.decide(NoTenant(), issue("k1"), at())) == "tenant_unknown"


def test_a_key_that_has_ended_is_not_issued() -> None:
    assert refused(tenant.decide(ACME, issue("k1", expires_at=NOW), at())) == "expired_at_birth"
    assert not isinstance(tenant.decide(ACME, issue("k1", expires_at=NOW + 1), at()), Rejected)


def test_a_key_is_revoked_once_and_only_if_it_exists() -> None:
    state = after(tenant, ACME, issue("k1"))
    revoked = after(tenant, state, RevokeApiKey(KeyId("k1"), "leaked"))
    assert refused(tenant.decide(revoked, RevokeApiKey(KeyId("k1"), ""), at())) == "already_revoked"
    assert refused(tenant.decide(state, RevokeApiKey(KeyId("k2"), ""), at())) == "key_unknown"


def test_a_tenant_has_a_bounded_number_of_working_keys() -> None:
    assert isinstance(ACME, tenant.ActiveTenant)
    full = replace(ACME, keys={f"k{i}": None for i in range(tenant.KEYS_MAX)})
    assert refused(tenant.decide(full, issue("one-more"), at())) == "too_many_keys"
    one_ended = replace(full, keys={**full.keys, "k0": NOW - 1})
    assert not isinstance(tenant.decide(one_ended, issue("one-more"), at()), Rejected)


# --- price books


def publish(start: int | None, *prices: Price, currency: str = "CNY") -> PublishPriceBook:
    given = prices or (Price(model="*", meter="calls", amount_micros=1000),)
    return PublishPriceBook(BookId("standard"), currency, start, given)


BOOK: BookState = after(price_book, NoBook(), publish(NOW + DAY))


def test_versions_of_a_book_are_counted_from_one() -> None:
    (fact,) = price_book.decide(BOOK, publish(NOW + 2 * DAY), at())  # type: ignore[misc]
    assert (fact.book_version, fact.version, fact.effective_from) == (2, 2, NOW + 2 * DAY)


def test_prices_never_change_backwards() -> None:
    assert refused(price_book.decide(NoBook(), publish(NOW - PAST_TOLERANCE_US - 1), at())) == "effective_in_past"
    assert refused(price_book.decide(BOOK, publish(NOW + DAY), at())) == "effective_before_last"


def test_a_clock_that_is_a_little_behind_prices_nothing_that_was_counted_before() -> None:
    for said in (NOW - PAST_TOLERANCE_US, NOW - 1, NOW, None):
        (fact,) = price_book.decide(NoBook(), publish(said), at())  # type: ignore[misc]
        assert fact.effective_from == NOW


def test_every_broken_rule_of_a_book_is_named_at_once() -> None:
    twice = Price(model="*", meter="calls", amount_micros=1)
    decision = price_book.decide(NoBook(), publish(0, twice, twice, Price(model="m", meter="calls", amount_micros=1), twice), at())
    assert isinstance(decision, Rejected)
    assert [(v.code, v.field) for v in decision.violations] == [
        ("effective_in_past", "effective_from"),
        ("price_twice", "prices.1"),
        ("price_twice", "prices.3"),
    ]


def test_a_slip_of_the_unit_does_not_close_a_book_for_ever() -> None:
    assert refused(price_book.decide(BOOK, publish(NOW * 1000), at())) == "effective_too_late"
    assert not isinstance(price_book.decide(BOOK, publish(NOW + 3000 * DAY), at()), Rejected)


def test_a_book_keeps_its_currency() -> None:
    assert refused(price_book.decide(BOOK, publish(NOW + 2 * DAY, currency="USD"), at())) == "currency_changed"


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
    return FixCut(TenantId("acme"), period, start, end, log, cuts, 7, 3, 1, BookId("standard"), "CNY")


def completion(cut: BillCutFixed, **changes: Any) -> CompleteBill:
    line = Line(LineKey("m", "1.0.0", "acme", "calls", 1, 1000, 1, False), 2, 2000)
    digest = Bill(cut.model_dump(), (line,), 2000, {**COUNTS, "claimed": 2}, 0).digest()
    command = CompleteBill(cut.period, cut.number, cut.event_id, digest, (LINE,), 2000, BillCounts(claimed=2), 0)
    return replace(command, **changes)


CUT: BillState = after(bill, NoBills(), fix())


def fixed(state: BillState) -> BillCutFixed:
    assert not isinstance(state, NoBills)
    return state.cut


def test_amounts_of_one_currency_are_never_billed_in_another() -> None:
    assert refused(bill.decide(NoBills(), replace(fix(), book_currency="USD"), at())) == "currency_differs"
    assert after(bill, NoBills(), replace(fix(), book_currency="CNY")) == CUT


def issued(state: BillState = CUT) -> BillState:
    return after(bill, state, completion(fixed(state)))


def test_a_running_period_is_billed_up_to_now_and_an_ended_one_up_to_its_end() -> None:
    assert fixed(CUT).until == NOW
    assert fixed(after(bill, NoBills(), fix(end=NOW - 5))).until == NOW - 5
    assert refused(bill.decide(NoBills(), fix(start=NOW + 1), at())) == "period_not_begun"


def test_one_bill_at_a_time() -> None:
    assert refused(bill.decide(CUT, fix(), at())) == "cut_open"


def test_the_next_bill_names_the_one_before() -> None:
    first = issued()
    second = fixed(after(bill, first, fix(ends=20), now=NOW + 1))
    assert isinstance(first, bill.Issued)
    assert (fixed(first).previous_bill_sha256, second.number, second.previous_bill_sha256) == (NO_HASH, 2, first.digest)


def test_cuts_and_instants_only_grow() -> None:
    state = issued()
    assert refused(bill.decide(state, fix(end=NOW - 1), at(NOW + DAY))) == "period_already_billed"
    assert refused(bill.decide(state, fix(ends=9), at(NOW + 1))) == "log_shrunk"
    assert refused(bill.decide(state, fix(log="another"), at(NOW + 1))) == "log_shrunk"
    assert not isinstance(bill.decide(state, fix(end=NOW), at(NOW + 1)), Rejected)  # late usage of the same period


def test_a_bill_is_issued_as_it_was_computed() -> None:
    (fact,) = bill.decide(CUT, completion(fixed(CUT)), at())  # type: ignore[misc]
    assert isinstance(fact, BillIssued)
    assert (fact.number, fact.total_micros, fact.facts.claimed, fact.lines) == (1, 2000, 2, (LINE,))


def test_a_bill_that_does_not_fit_into_one_record_is_listed_before_it_is_issued() -> None:
    keys = [LineKey("模" * 200, f"1.0.{i}", "p" * 200, "calls", 1, 1, 1, False) for i in range(5000)]
    lines = tuple(BillLine(**key._asdict(), quantity=i, amount_micros=i) for i, key in enumerate(keys))
    total = sum(line.amount_micros for line in lines)
    said = tuple(Line(key, i, i) for i, key in enumerate(keys))
    digest = Bill(fixed(CUT).model_dump(), said, total, COUNTS, 0).digest()
    *listed, last = bill.decide(CUT, completion(fixed(CUT), lines=lines, total_micros=total, digest=digest, facts=COUNTS), at())  # type: ignore[misc]
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
    assert isinstance(state, bill.Issued)


def test_many_billers_issue_one_bill() -> None:
    state = issued()
    assert bill.decide(state, completion(fixed(state)), at()) == AlreadyIssued(1)
    other = completion(fixed(state), digest=hashlib.sha256(b"other").digest())
    assert refused(bill.decide(state, other, at())) == "digest_differs"


def test_a_bill_that_does_not_add_up_or_hashes_to_something_else_is_refused() -> None:
    assert refused(bill.decide(CUT, completion(fixed(CUT), total_micros=1999), at())) == "total_differs"
    assert refused(bill.decide(CUT, completion(fixed(CUT), producers_open=1), at())) == "digest_wrong"
    assert refused(bill.decide(CUT, completion(fixed(CUT), excluded=(4,)), at())) == "digest_wrong"
    assert refused(bill.decide(CUT, completion(fixed(CUT), excluded=(4, 4)), at())) == "not_in_order"


def test_a_bill_answers_exactly_the_open_cut() -> None:
    assert refused(bill.decide(NoBills(), completion(fixed(CUT)), at())) == "no_cut"
    for change in ({"number": 2}, {"cut_event_id": "x"}, {"period": "2027-02"}):
        assert refused(bill.decide(CUT, completion(fixed(CUT), **change), at())) == "no_such_cut"
