"""Routes of bills: the heads of a tenant's bills, and one period with its lines."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from projections.query_api.answers import Bill, BillPage
from projections.query_api.bills import bill_of, bills_of
from projections.query_api.callers import tenant_asked
from projections.query_api.problems import invalid
from projections.query_api.request_context import ASKED, MayRead, Parts, TenantFilter
from rating.period import InvalidPeriod, period_bounds

router = APIRouter(tags=["bills"])
LinesFrom = Annotated[int, Query(ge=0, le=1 << 40, description="Where this page of lines begins: `next_lines_from` of the last one.")]


@router.get("/v1/bills", response_model=BillPage, responses=ASKED)
def bills(parts: Parts, caller: MayRead, tenant: TenantFilter = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Any:
    """Bills, newest first: the issued ones, and the running one that nobody owes yet."""
    return {"bills": bills_of(parts.clickhouse, tenant_asked(caller, tenant), limit)}


@router.get("/v1/bills/{period}", response_model=Bill, responses=ASKED)
def bill(parts: Parts, caller: MayRead, period: str, tenant: TenantFilter = "", lines_from: LinesFrom = 0) -> Any:
    """A period's bills with their lines, page by page: `YYYY-MM` or `YYYY-MM-DD` in the tenant's zone."""
    whose = tenant_asked(caller, tenant)
    if not whose:
        raise invalid("tenant_missing", "an admin has no bills of its own", "tenant", "name the tenant: ?tenant=…")
    try:
        period_bounds(period, parts.accounts.zone(whose))
    except InvalidPeriod as e:
        raise invalid("period_malformed", "this is no period", "period", "write YYYY-MM or YYYY-MM-DD") from e
    return bill_of(parts.clickhouse, whose, period, lines_from)
