"""The resource of bills: fixing what a bill covers, and issuing it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from commands.bills.answers import BillAnswer, BillShown
from commands.bills.decide import BillCommand, FixCut, decide
from commands.bills.requests import CompleteBillRequest
from commands.bills.state import BILLS, BillState, Issued, NoBills
from commands.http.answers import state_answer
from commands.http.bounds import PeriodPath, SlugPath
from commands.http.command_app import CommandApp
from commands.http.operations import command, reading
from commands.http.piecewise import PiecewiseRoute
from commands.http.problem_answers import rejected_answer
from commands.prices.lookup import book_currency
from commands.processor.command_handler import CommandHandler
from commands.processor.rejection import invalid, missing
from commands.tenants.lookup import existing_tenant
from commands.tenants.state import ActiveTenant, no_tenant
from events.facts.bills import BillLine, Cut, CutPins
from rating.period import InvalidPeriod, period_bounds
from rating.rules import RATING_VERSION


class BillRoute(PiecewiseRoute):
    """Of a body with all lines of a bill."""

    lists = {"lines": TypeAdapter(list[BillLine])}


class Bills:
    """Fixing what a bill covers, and issuing it."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/bills", tags=["bills"])
        reading(routes, "/{tenant}", BillShown)(self.read)
        command(routes, "POST", "/{tenant}/{period}/cut", BillAnswer, created=True)(self.fix_cut)
        of_lines = APIRouter(route_class=BillRoute)
        command(of_lines, "POST", "/{tenant}/{period}/complete", BillAnswer)(self.complete)
        routes.include_router(of_lines)
        return routes

    def read(self, tenant: SlugPath, request: Request) -> Response:
        """The newest bill of a tenant: fixed or issued. Lines are in the query API."""
        call = self._app.authorize(request, "read")
        if not call.principal.acts_for(tenant):
            return rejected_answer(no_tenant(), call.headers)
        state = self._app.aggregates.load(BILLS, tenant)
        if isinstance(state, NoBills):
            return rejected_answer(missing("no_bill", "this tenant has no bill yet", "tenant", "fix a cut first"), call.headers)
        return state_answer(call.headers, state.version, _answer(state))

    def fix_cut(self, tenant: SlugPath, period: PeriodPath, request: Request) -> Response:
        """Fixes what the next bill covers: everything on the log now, up to the period's end or now."""
        call = self._app.authorize(request, "admin")
        payer = existing_tenant(self._app, tenant)
        try:
            start, end = period_bounds(period, payer.terms.timezone)
        except InvalidPeriod as e:
            return rejected_answer(invalid("period_malformed", str(e), "period", "write YYYY-MM or YYYY-MM-DD"), call.headers)
        return self._app.run(call, FIX_CUT, tenant, self._cut(payer, period, start, end))

    def complete(self, tenant: SlugPath, period: PeriodPath, body: CompleteBillRequest, request: Request) -> Response:
        """The biller's result. The same digest again is fine; another one is 409."""
        call = self._app.authorize(request, "admin")
        # The digest says which lines, and is checked.
        same = body.model_copy(update={"lines": ()})
        return self._app.run(call, COMPLETE, tenant, body.command(period), same)

    def _cut(self, tenant: ActiveTenant, period: str, start: int, end: int) -> FixCut:
        ends = self._app.log_ends("usage", "producers")
        return FixCut(
            tenant.tenant,
            start,
            end,
            CutPins(
                period=period,
                log_id=self._app.log_id,
                cuts=tuple(Cut(partition=p, offset=o) for (topic, p), o in sorted(ends.items()) if topic == "usage"),
                decided_position=self._app.store.last_position(),
                producers_offset=ends["producers", 0],
                rating_version=RATING_VERSION,
                price_book=tenant.terms.price_book,
                currency=tenant.terms.currency,
            ),
            book_currency(self._app.aggregates, tenant.terms.price_book),
        )


def _answer(state: BillState, _command: BillCommand | None = None) -> dict[str, Any]:
    assert not isinstance(state, NoBills)
    cut = state.cut
    content: dict[str, Any] = {
        "tenant": cut.tenant,
        "period": cut.period,
        "number": cut.number,
        "state": state.kind,
        "cut_event_id": cut.event_id,
        "until": cut.until,
        "cuts": {str(c.partition): c.offset for c in cut.cuts},
    }
    return {**content, "digest": state.digest.hex()} if isinstance(state, Issued) else content


FIX_CUT = CommandHandler(BILLS, decide, _answer, created=True)
COMPLETE = CommandHandler(BILLS, decide, _answer)
