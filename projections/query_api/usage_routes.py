"""Routes of usage: executions, meters, outcomes and latency by the dimensions asked for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from events.process.clock import now_us
from projections.query_api import usage as usage_queries
from projections.query_api.answers import UsagePage
from projections.query_api.callers import tenant_asked
from projections.query_api.problems import invalid
from projections.query_api.request_context import ASKED, MayRead, Parts, TenantFilter, Text, instant

router = APIRouter(tags=["usage"])
_DIMENSION = f"({'|'.join(sorted(usage_queries.ADMIN_DIMENSIONS))})"
Dimensions = Annotated[str, Field(json_schema_extra={"pattern": f"^{_DIMENSION}(,{_DIMENSION})*$"})]
DEFAULT_DIMENSIONS = ("day", "model", "model_version")


@router.get("/v1/usage", response_model=UsagePage, responses=ASKED)
def usage(
    parts: Parts,
    caller: MayRead,
    group_by: Annotated[
        tuple[Dimensions, ...], Query(max_length=8, description="Dimensions, repeated or with commas")
    ] = DEFAULT_DIMENSIONS,
    since: Annotated[str, Query(alias="from", max_length=40, description="ISO 8601 or µs; 31 days ago if empty.")] = "",
    until: Annotated[str, Query(alias="to", max_length=40, description="ISO 8601 or µs, exclusive; now if empty.")] = "",
    model: Text = "",
    tenant: TenantFilter = "",
    view: Annotated[str, Query(pattern="^(caller|owner)$", description="caller: your calls. owner: calls of your models.")] = "caller",
    limit: Annotated[int, Query(ge=1, le=usage_queries.ROWS_MAX)] = 1000,
) -> Any:
    """Executions, meters, outcomes and latency by the dimensions asked for. Owners of models see callers only in sum."""
    whose = tenant_asked(caller, tenant)
    owner = view == "owner"
    allowed = (
        usage_queries.OWNER_DIMENSIONS if owner else usage_queries.ADMIN_DIMENSIONS if caller.admin else usage_queries.CALLER_DIMENSIONS
    )
    dimensions = tuple(dict.fromkeys(d for part in group_by for d in part.split(",") if d))
    unknown = [d for d in dimensions if d not in allowed]
    if unknown:
        raise invalid("dimension_unknown", f"cannot group by {unknown[0][:50]!r}", "group_by", f"use some of: {', '.join(sorted(allowed))}")
    end = instant(until, "to", now_us())
    start = instant(since, "from", end - 31 * 86_400_000_000)
    if start < 0 or not 0 <= end - start <= usage_queries.SPAN_US_MAX:
        raise invalid("span_too_long", "`from` lies after `to`, or more than 400 days before it", "from", "ask for a shorter span")
    question = usage_queries.Question(
        start, end, dimensions, parts.accounts.zone(whose), "" if owner else whose, whose if owner else "", model, limit
    )
    rows, truncated = usage_queries.usage(parts.clickhouse, question)
    return {"rows": rows, "truncated": truncated, "group_by": list(dimensions), "from": start, "to": end, "view": view}
