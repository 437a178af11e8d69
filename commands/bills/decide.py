"""A tenant's bills, one after another: fix the cut, then issue exactly that bill (K20, K21).

A bill covers everything below its cut and before `until`; both only grow, so late usage falls into the next bill by itself.
The period is the caller's name for `until`: the end of the period in the tenant's zone, or now while the period runs, and never before the
end of the last bill.
There is no grace after a period's end: what arrives late is late, and the next bill of the same or a later period has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from commands.bills.state import BillFact, BillState, CutOpen, Issued, NoBills
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, missing
from events.facts.bills import BillCutFixed, BillIssued, BillLine, BillLinesListed, BillResult, CutPins
from events.facts.fact import NO_HASH, TenantId, Timestamp
from events.process.problem import Violation
from rating.bill import Bill
from rating.statement import Line, LineKey

LINES_BYTES_MAX = 400 * 1024
"""Lines of one record, by an upper bound of their encoding: with everything else of a bill that is below K3's 512 KiB."""
NUMBERS_BYTES_MAX = 80
"""The numbers of a line, and the lengths of its texts: at most ten bytes each in Avro."""


@dataclass(frozen=True, slots=True)
class FixCut:
    """In `pins`, `cuts` and `producers_offset` are the ends of the log, `decided_position` the end of the store, all read before deciding."""

    tenant: TenantId
    period_start: Timestamp
    period_end: Timestamp
    pins: CutPins
    book_currency: str = ""
    """What the book's prices are in; empty when there is no such book yet, and everything is held."""


@dataclass(frozen=True, slots=True)
class CompleteBill:
    period: str
    digest: bytes
    lines: tuple[BillLine, ...]
    result: BillResult


BillCommand = FixCut | CompleteBill


Decision = tuple[BillFact, ...] | Rejected
"""No facts: this very bill is issued already. Another biller was first, nothing is to be written, and all is well."""


def decide(state: BillState, command: BillCommand, context: CommandContext) -> Decision:
    match command:
        case FixCut():
            return _fix(state, command, context)
        case CompleteBill():
            return _complete(state, command, context)
        case _:
            assert_never(command)


def _fix(state: BillState, c: FixCut, o: CommandContext) -> Decision:
    pins = c.pins
    if c.period_start > o.now:
        return conflict("period_not_begun", f"{pins.period} has not begun", "period", "bill it when it has")
    if c.book_currency not in ("", pins.currency):
        message = f"{c.tenant} pays in {pins.currency}, book {pins.price_book} is in {c.book_currency}"
        return conflict(
            "currency_differs",
            message,
            "tenant",
            "tell an admin: amounts are never converted, so this tenant cannot be billed from this book",
        )
    until = min(c.period_end, o.now)
    match state:
        case CutOpen():
            message = f"bill {state.cut.number} ({state.cut.period}) is fixed and not issued yet"
            return conflict("cut_open", message, "period", "wait for the biller; see the workers' and the biller's health")
        case Issued():
            last = state.cut
            # Ends only grow (K20), and no period is closed. A bill of a period that ended before the last bill's end has the late usage up
            # to that end. So a cut that a fast clock made, of this period or a later one, holds up no bill: each has what the log has got since.
            until = max(until, last.until)
            ends = {x.partition: x.offset for x in pins.cuts}
            # The log never shrinks. If its end lies below an earlier cut, this is another log, and billing from it would bill twice.
            if pins.log_id != last.log_id or any(ends.get(x.partition, -1) < x.offset for x in last.cuts):
                return conflict(
                    "log_shrunk",
                    f"this log ends before the cut of the last bill, or is not its log {last.log_id}",
                    "",
                    "connect to the log of the last bill",
                )
            number, previous = last.number + 1, state.digest
        case NoBills():
            number, previous = 1, NO_HASH
        case _:
            assert_never(state)
    fact = BillCutFixed(
        **o.head(state.version + 1),
        tenant=c.tenant,
        number=number,
        until=until,
        **c.pins.shared(CutPins),
        previous_bill_sha256=previous,
        by=o.by,
    )
    return (fact,)


def _complete(state: BillState, c: CompleteBill, o: CommandContext) -> Decision:
    if isinstance(state, NoBills):
        return missing("no_cut", "no bill of this tenant was fixed", "number", "fix a cut first")
    cut, result = state.cut, c.result
    if (result.number, result.cut_event_id, c.period) != (cut.number, cut.event_id, cut.period):
        message = f"the last cut is bill {cut.number} ({cut.period}), {cut.event_id}"
        return conflict("no_such_cut", message, "number", "compute the bill of that cut")
    match state:
        case Issued():
            return () if c.digest == state.digest else _other_digest(cut.number)
        case CutOpen():
            wrong = _wrong(cut, c)
        case _:
            assert_never(state)
    if wrong:
        return Rejected("invalid", wrong)
    *parts, last = parts_of(c.lines)
    listed = [
        BillLinesListed(**o.head(state.version + i), tenant=cut.tenant, period=cut.period, number=cut.number, lines=part)
        for i, part in enumerate(parts, 1)
    ]
    fact = BillIssued(
        **o.head(state.version + 1 + len(listed)),
        tenant=cut.tenant,
        period=cut.period,
        digest=c.digest,
        currency=cut.currency,
        lines=last,
        lines_before=len(c.lines) - len(last),
        records_written_off=len(result.excluded),
        **result.shared(BillResult),
    )
    return (*listed, fact)


def parts_of(lines: Sequence[BillLine]) -> list[tuple[BillLine, ...]]:
    """The lines in their order, in as many parts as fit into a record each; at least one, which may be empty."""
    parts: list[list[BillLine]] = [[]]
    filled = 0
    for line in lines:
        size = NUMBERS_BYTES_MAX + sum(len(text.encode()) for text in (line.model, line.model_version, line.provider, line.meter))
        if filled + size > LINES_BYTES_MAX:
            parts.append([])
            filled = 0
        parts[-1].append(line)
        filled += size
    return [tuple(part) for part in parts]


def _wrong(cut: BillCutFixed, c: CompleteBill) -> tuple[Violation, ...]:
    """A bill must add up, and its digest must be of what it says: else nobody could check it later."""
    found, result = list[Violation](), c.result
    charged = sum(line.amount_micros for line in c.lines if not line.held)
    if charged != result.total_micros:
        found.append(
            Violation(
                "total_differs", f"the lines add up to {charged}, not {result.total_micros}", "total_micros", "send the sum of the lines"
            )
        )
    keys = (LineKey(**line.model_dump(include=set(LineKey._fields))) for line in c.lines)
    lines = tuple(Line(key, line.quantity, line.amount_micros) for key, line in zip(keys, c.lines, strict=True))
    if list(result.excluded) != sorted(set(result.excluded)):
        found.append(Violation("not_in_order", "offsets grow, and none comes twice", "excluded", "sort them"))
    digest = Bill(cut.model_dump(), lines, result.total_micros, result.facts.model_dump(), result.producers_open, result.excluded).digest()
    if digest != c.digest:
        remedy = "hash the canonical bytes of this cut and these lines (rating/bill.py)"
        found.append(Violation("digest_wrong", f"the bill hashes to {digest.hex()}", "digest", remedy))
    return tuple(found)


def _other_digest(number: int) -> Rejected:
    remedy = "two billers disagree: compare their code and rating versions"
    return conflict("digest_differs", f"bill {number} was issued with another digest", "digest", remedy)
