"""Rating: exact amounts for any order, copies, cuts and delays of usage."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from events.facts.meters import METERS, Meter
from rating.bill import make_bill
from rating.book import BookVersion, Price, PriceBook, round_half_up
from rating.rules import DAY_US, EARLY_US_MAX, LATE_US_MAX, UsageRecord, effective_us
from rating.statement import Bucket, Cutoff, LineKey, Place, Statement, StatementBuilder, difference, rate, statement_of

NOON = 1_790_000_000_000_000
CALLS, TOKENS = METERS.index("calls"), METERS.index("input_tokens")
FREE: dict[tuple[str, Meter], Price] = {("*", meter): Price(0, 1) for meter in METERS}


def book(**effective_from: int) -> PriceBook:
    """`calls` of any model cost v1=…: version number × 10 micro-units per 4 calls from that instant on; all else is free."""
    return PriceBook(
        BookVersion(int(name[1:]), at, {**FREE, ("*", "calls"): Price(int(name[1:]) * 10, 4)}) for name, at in effective_from.items()
    )


BOOK = book(v1=0)


def call(
    offset: int, event: str | None = None, *, at: int = NOON, append: int | None = None, key: bytes = b"", **more: object
) -> UsageRecord:
    """A succeeded call; its bytes follow from its content, as on the log."""
    event = event or f"e{offset}"
    quantities = [0] * len(METERS)
    quantities[CALLS] = 1
    record = UsageRecord(
        0, offset, at if append is None else append, b"", "InvocationSettled", event, at, "epoch-1", offset + 1, "succeeded", False, key, "acme", "model-a",
        "1.0.0", tuple(quantities),
    )  # fmt: skip
    record = replace(record, **more)  # type: ignore[arg-type]
    written = replace(record, partition=0, offset=0, append_us=0, sequence=0)
    return record if record.sha256 else replace(record, sha256=hashlib.sha256(repr(written).encode()).digest())


def void(offset: int, of: str) -> UsageRecord:
    return call(offset, f"void-{offset}", fact="InvocationVoided", outcome="", voided=of, quantities=())


def everything(records: list[UsageRecord], until: int = 1 << 62) -> Cutoff:
    return Cutoff({0: 1 + max((r.offset for r in records), default=-1)}, until)


def calls_of(statement: Statement) -> int:
    return sum(quantity for line, quantity in statement.quantities.items() if line.meter == "calls")


# --- prices


def test_a_models_own_price_comes_before_the_price_of_any_model() -> None:
    version = BookVersion(1, 0, {("*", "calls"): Price(10, 1), ("model-a", "calls"): Price(3, 1)})
    assert version.price("model-a", "calls") == Price(3, 1)
    assert version.price("model-b", "calls") == Price(10, 1)
    assert version.price("model-a", "gpu_us") is None


def test_a_model_may_be_free_where_others_cost() -> None:
    version = BookVersion(1, 0, {("*", "calls"): Price(10, 1), ("model-a", "calls"): Price(0, 1)})
    assert version.price("model-a", "calls") == Price(0, 1)


def test_the_price_in_force_is_that_of_the_newest_version_that_has_taken_effect() -> None:
    prices = book(v1=100, v2=200, v3=200)
    assert prices.at(99) is None
    assert [v.number for t in (100, 199, 200, 10**18) if (v := prices.at(t))] == [1, 1, 3, 3]


def test_an_unknown_price_is_held_and_shown_and_never_zero_priced() -> None:
    usage = {Bucket("model-a", "1.0.0", "acme", 0): tuple(7 if m == "calls" else 0 for m in METERS)}
    lines = rate(usage, PriceBook())
    assert lines == {LineKey("model-a", "1.0.0", "acme", "calls", 0, 0, 1, held=True): 7}
    assert Statement(lines).total_micros == 0


def test_a_price_of_zero_is_a_price() -> None:
    usage = {Bucket("model-a", "1.0.0", "acme", 1): tuple(7 if m == "bytes_in" else 0 for m in METERS)}
    assert [line.held for line in rate(usage, BOOK)] == [False]


def test_a_meter_nobody_used_makes_no_line() -> None:
    assert rate({Bucket("model-a", "1.0.0", "acme", 1): (0,) * len(METERS)}, BOOK) == {}


def test_a_half_is_rounded_up() -> None:
    assert [round_half_up(n, 4) for n in range(9)] == [0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_usage_is_priced_at_its_own_time() -> None:
    records = [call(0, at=NOON), call(1, at=NOON + 10)]
    lines = statement_of(records, everything(records), book(v1=NOON, v2=NOON + 5)).quantities
    assert {line.book_version: quantity for line, quantity in lines.items()} == {1: 1, 2: 1}


# --- which executions


def test_only_succeeded_calls_that_are_no_shadow_are_billed() -> None:
    records = [
        call(0),
        call(1, outcome="failed"),
        call(2, outcome="client_error"),
        call(3, outcome="timed_out"),
        call(4, outcome="aborted"),
        call(5, shadow=True),
        call(6, fact="InvocationOpened"),
        call(7, fact="InvocationAbandoned"),
        call(8, fact="InvocationRefused"),
    ]
    statement = statement_of(records, everything(records), BOOK)
    assert calls_of(statement) == 1
    assert (statement.counts.claimed, statement.counts.unbilled) == (1, 8)


def test_the_same_record_again_is_a_copy_and_other_bytes_are_a_conflict() -> None:
    first = call(0, "e")
    records = [first, replace(first, offset=1), call(2, "e", model="model-b")]
    statement = statement_of(records, everything(records), BOOK)
    assert (statement.counts.claimed, statement.counts.copied, statement.counts.conflicting) == (1, 1, 1)
    assert {line.model for line in statement.quantities} == {"model-a"}


def test_a_call_whose_answer_never_arrived_is_not_billed() -> None:
    records = [call(0, "a"), call(1, "b"), void(2, "a")]
    statement = statement_of(records, everything(records), BOOK)
    assert calls_of(statement) == 1
    assert (statement.counts.voided, statement.counts.unbilled) == (1, 1)


def test_one_key_bills_its_first_billable_execution() -> None:
    records = [
        call(0, key=b"k", outcome="aborted"),
        call(1, "dead", key=b"k"),
        void(2, "dead"),
        call(3, key=b"k"),
        call(4, key=b"k", at=NOON + DAY_US - 1),
    ]
    statement = statement_of(records, everything(records), BOOK)
    assert calls_of(statement) == 1
    assert (statement.counts.unbilled, statement.counts.voided, statement.counts.duplicate) == (2, 1, 1)


def test_an_abort_and_then_its_retry_bill_once() -> None:
    records = [call(0, key=b"k", outcome="aborted"), call(1, key=b"k")]
    assert calls_of(statement_of(records, everything(records), BOOK)) == 1


def test_a_key_is_forgotten_after_a_day() -> None:
    records = [call(0, key=b"k"), call(1, key=b"k", at=NOON + DAY_US)]
    assert calls_of(statement_of(records, everything(records), BOOK)) == 2


def test_calls_without_a_key_are_never_duplicates() -> None:
    records = [call(i) for i in range(100)]
    assert calls_of(statement_of(records, everything(records), BOOK)) == 100


def test_one_idempotency_key_with_1000_different_bodies_is_1000_calls() -> None:
    records = [call(i, key=hashlib.sha256(b"tenant|key|infer|%d" % i).digest()) for i in range(1000)]
    assert calls_of(statement_of(records, everything(records), BOOK)) == 1000


# --- time


def test_an_implausible_time_is_replaced_by_the_append_time() -> None:
    for at, holds in (
        (NOON - LATE_US_MAX, True),
        (NOON - LATE_US_MAX - 1, False),
        (NOON + EARLY_US_MAX, True),
        (NOON + EARLY_US_MAX + 1, False),
    ):
        assert effective_us(at, NOON) == (at if holds else NOON)
        records = [call(0, at=at, append=NOON)]
        assert statement_of(records, everything(records), BOOK).counts.retimed == (not holds)


def test_a_gap_in_a_producers_sequence_is_counted_as_missing() -> None:
    records = [call(0, sequence=1), call(1, sequence=4), call(2, sequence=1, epoch="epoch-2")]
    assert statement_of(records, everything(records), BOOK).counts.missing == 2


def test_a_number_used_twice_is_no_gap_and_hides_none() -> None:
    records = [call(0, sequence=1), call(1, sequence=1), call(2, sequence=0), call(3, sequence=4, epoch="epoch-2")]
    assert statement_of(records, everything(records), BOOK).counts.missing == 3


# --- bills as differences


def cut_of(number: int, cutoff: Cutoff) -> dict[str, object]:
    pins = {
        "tenant": "t",
        "period": "2026-11",
        "log_id": "l",
        "decided_position": 0,
        "rating_version": 1,
        "price_book": "standard",
        "currency": "CNY",
    }
    cuts = [{"partition": p, "offset": o} for p, o in cutoff.cuts.items()]
    return {**pins, "number": number, "event_id": f"cut-{number}", "cuts": cuts, "until": cutoff.until, "previous_bill_sha256": bytes(32)}


executions = st.builds(
    lambda event, key, at, delay, tokens, outcome, shadow, model: (event, key, at, delay, tokens, outcome, shadow, model),
    st.integers(0, 15),
    st.sampled_from([b"", b"", b"k1", b"k2"]),
    st.integers(0, 3 * DAY_US),
    st.integers(-2 * EARLY_US_MAX, 9 * DAY_US),
    st.integers(0, 1000),
    st.sampled_from(["succeeded", "succeeded", "succeeded", "failed"]),
    st.booleans(),
    st.sampled_from(["model-a", "model-b"]),
)
voids = st.integers(0, 15)


@st.composite
def logs(draw: st.DrawFn) -> list[UsageRecord]:
    """A tenant's partition: executions whose event ids collide (copies and conflicts), voids before and after, any delay."""
    written = draw(st.lists(st.one_of(executions, voids), max_size=40))
    records: list[UsageRecord] = []
    for offset, what in enumerate(written):
        if isinstance(what, int):
            records.append(void(offset * 3, f"e{what}"))
            continue
        event, key, at, delay, tokens, outcome, shadow, model = what
        quantities = tuple(1 if i == CALLS else tokens if i == TOKENS else 0 for i in range(len(METERS)))
        records.append(
            call(
                offset * 3,
                f"e{event}",
                at=NOON + at,
                append=NOON + at + delay,
                key=key,
                quantities=quantities,
                outcome=outcome,
                shadow=shadow,
                model=model,
            )
        )
    return records


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[UsageRecord], list[Cutoff]]:
    """A log and the cuts of its bills: C and T only grow; the last bill takes everything."""
    records = draw(logs())
    end = 3 * len(records)
    offsets = sorted(draw(st.lists(st.integers(0, end), max_size=4)))
    untils = sorted(draw(st.lists(st.integers(0, 12 * DAY_US), min_size=len(offsets), max_size=len(offsets))))
    cutoffs = [Cutoff({0: c}, NOON + t) for c, t in zip(offsets, untils, strict=True)]
    return records, [*cutoffs, Cutoff({0: end}, 1 << 62)]


PRICES = PriceBook(
    [
        BookVersion(1, NOON - DAY_US, {**FREE, ("*", "calls"): Price(10, 3), ("model-a", "input_tokens"): Price(7, 1000)}),
        BookVersion(2, NOON + DAY_US, {("*", "calls"): Price(11, 7)}),
    ]
)


@settings(max_examples=300, deadline=None)
@given(histories())
def test_every_record_below_a_cut_is_in_exactly_one_class(history: tuple[list[UsageRecord], list[Cutoff]]) -> None:
    records, cutoffs = history
    for cutoff in cutoffs:
        below = [r for r in records if r.offset < cutoff.cuts[0]]
        assert statement_of(records, cutoff, PRICES).counts.records == len(below)


@settings(max_examples=300, deadline=None)
@given(histories())
def test_the_bills_add_up_to_the_rate_of_everything(history: tuple[list[UsageRecord], list[Cutoff]]) -> None:
    records, cutoffs = history
    before, total, claimed = Statement(), 0, 0
    quantities: dict[LineKey, int] = {}
    for number, cutoff in enumerate(cutoffs, 1):
        now = statement_of(records, cutoff, PRICES)
        bill = make_bill(cut_of(number, cutoff), now, before, frozenset())
        total, claimed = total + bill.total_micros, claimed + bill.facts["claimed"]
        for line in bill.lines:
            quantities[line.key] = quantities.get(line.key, 0) + line.quantity
        before = now
    whole = statement_of(records, Cutoff({0: 3 * len(records)}, 1 << 62), PRICES)
    assert total == whole.total_micros
    assert claimed == whole.counts.claimed
    assert {key: q for key, q in quantities.items() if q} == whole.quantities
    assert whole.counts.carried == 0


@settings(max_examples=200, deadline=None)
@given(logs())
def test_ten_copies_of_everything_change_no_line(records: list[UsageRecord]) -> None:
    once = statement_of(records, everything(records), PRICES)
    copies = [replace(r, offset=r.offset + (n * 3 * len(records))) for n in range(10) for r in records]
    tenfold = statement_of(copies, everything(copies), PRICES)
    assert tenfold.quantities == once.quantities
    assert tenfold.counts.claimed == once.counts.claimed
    assert tenfold.counts.records == 10 * once.counts.records


@settings(max_examples=200, deadline=None)
@given(logs(), st.randoms())
def test_the_order_in_which_records_are_read_changes_nothing(records: list[UsageRecord], chance: object) -> None:
    shuffled = list(records)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    cutoff = everything(records)
    assert statement_of(shuffled, cutoff, PRICES) == statement_of(records, cutoff, PRICES)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.integers(0, 10**6), st.integers(1, 10**6))
def test_splitting_usage_over_facts_and_bills_never_makes_it_cheaper(parts: list[int], amount: int, units: int) -> None:
    prices = PriceBook([BookVersion(1, 0, {("*", "calls"): Price(amount, units)})])

    def records(sizes: list[int]) -> list[UsageRecord]:
        return [call(i, quantities=tuple(s if i == CALLS else 0 for i in range(len(METERS)))) for i, s in enumerate(sizes)]

    whole = statement_of(records([sum(parts)]), Cutoff({0: 1}, 1 << 62), prices).total_micros
    before, billed = Statement(), 0
    for cut in range(1, len(parts) + 1):
        now = statement_of(records(parts), Cutoff({0: cut}, 1 << 62), prices)
        billed += sum(line.amount_micros for line in difference(now, before))
        before = now
    assert billed == whole


def test_late_usage_falls_into_the_next_bill() -> None:
    records = [call(0), call(1, at=NOON + 10), call(2, at=NOON - 10)]
    first = statement_of(records, Cutoff({0: 2}, NOON + 5), BOOK)
    second = statement_of(records, Cutoff({0: 3}, NOON + 50), BOOK)
    assert (first.counts.claimed, first.counts.carried) == (1, 1)
    calls = [line.quantity for line in difference(second, first) if line.key.meter == "calls"]
    assert calls == [2]


def test_a_fact_in_the_last_instant_of_a_bill_is_carried_to_the_next() -> None:
    records = [call(0, at=NOON - 1), call(1, at=NOON)]
    counts = statement_of(records, Cutoff({0: 2}, NOON), BOOK).counts
    assert (counts.claimed, counts.carried) == (1, 1)


def test_what_a_bill_excluded_stays_out_of_it_and_is_on_the_next() -> None:
    records = [call(0), call(1), call(2)]
    billed = statement_of(records, Cutoff({0: 2}, 1 << 62, excluded=frozenset({1})), BOOK)
    then = statement_of(records, Cutoff({0: 3}, 1 << 62), BOOK)
    assert (billed.counts.claimed, then.counts.claimed) == (1, 3)
    assert [line.quantity for line in difference(then, billed) if line.key.meter == "calls"] == [2]


def test_a_bill_names_what_it_excluded_and_without_any_its_bytes_are_those_of_before() -> None:
    cutoff = everything([call(0)])
    none, some = (make_bill(cut_of(1, cutoff), Statement(), Statement(), frozenset(), offsets) for offsets in ((), (9, 4)))
    assert none.content().keys() & {"excluded", "records_written_off"} == set()
    assert (some.content()["excluded"], some.content()["records_written_off"]) == ([4, 9], 2)


def test_a_copy_counts_as_one_only_of_what_a_producer_proved_and_not_of_what_people_counted() -> None:
    """Both sources must class it alike: the tables know a copy by the chain, where what people counted is not."""
    forged, signed = call(0, "a"), call(3, "b")
    classed: list[tuple[UsageRecord, Place]] = [
        (forged, "decided"),
        (replace(forged, offset=1), "repeated"),
        (replace(forged, offset=2), "whole"),
        (signed, "whole"),
        (call(4, "b", model="model-b"), "whole"),
        (call(5, "b", model="model-b"), "repeated"),
        (replace(forged, offset=6), "repeated"),
        (call(7, "c"), "held"),
        (call(8, "d", model="model-c"), "decided"),
    ]
    builder = StatementBuilder(everything([record for record, _ in classed]), BOOK, frozenset())
    for record, place in classed:
        builder.add(record, place)
    counts = builder.statement().counts
    assert (counts.claimed, counts.held, counts.copied, counts.conflicting) == (3, 2, 2, 2)


def test_a_line_that_is_voided_away_is_given_back() -> None:
    records = [call(0, "a"), void(1, "a")]
    billed, then = (statement_of(records, Cutoff({0: cut}, 1 << 62), BOOK) for cut in (1, 2))
    (line,) = difference(then, billed)
    assert (line.key.meter, line.quantity, line.amount_micros) == ("calls", -1, -round_half_up(10, 4))


def test_two_billers_write_the_same_bytes() -> None:
    records = [call(i, model=f"model-{i % 3}") for i in range(20)]
    cutoff = everything(records)
    one = make_bill(cut_of(1, cutoff), statement_of(records, cutoff, BOOK), Statement(), frozenset())
    two = make_bill(cut_of(1, cutoff), statement_of(records[::-1], cutoff, BOOK), Statement(), frozenset())
    assert one.canonical() == two.canonical() and one.digest() == two.digest()


def test_a_producer_is_open_until_the_bill_knows_its_end() -> None:
    records = [call(0, epoch="a"), call(1, epoch="b", sequence=1), call(2, epoch="c", sequence=1, outcome="failed")]
    cutoff = everything(records)
    statement = statement_of(records, cutoff, BOOK)
    assert make_bill(cut_of(1, cutoff), statement, Statement(), frozenset({"b", "x"})).producers_open == 2
