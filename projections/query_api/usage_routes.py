"""Routes of usage: executions, meters, outcomes and latency by the dimensions asked for; and usage that is held."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from events.process.clock import now_us
from projections.query_api import usage as usage_queries
from projections.query_api.answers import HeldUsagePage, UsagePage
from projections.query_api.callers import tenant_asked
from projections.query_api.problems import invalid
from projections.query_api.request_context import ASKED, MayRead, Parts, TenantFilter, Text, instant
from projections.usage.held import HeldCode
from projections.usage.held_records import FIRST, HELD_RECORDS_MAX, HeldFilter, find_held

router = APIRouter(tags=["usage"])
_DIMENSION = f"({'|'.join(sorted(usage_queries.ADMIN_DIMENSIONS))})"
Dimensions = Annotated[str, Field(json_schema_extra={"pattern": f"^{_DIMENSION}(,{_DIMENSION})*$"})]
AfterHeld = Annotated[str, Query(pattern="^([0-9]{1,9}/[0-9]{1,18})?$", description="`next` of the page before.")]
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


@router.get("/v1/usage/held", response_model=HeldUsagePage, responses=ASKED)
def held_usage(
    parts: Parts,
    caller: MayRead,
    tenant: TenantFilter = "",
    code: Annotated[HeldCode | None, Query(description="Why it is held; any, if it is not given.")] = None,
    everything: Annotated[bool, Query(description="Also what two people decided to count or to dismiss.")] = False,
    after: AfterHeld = "",
    limit: Annotated[int, Query(ge=1, le=HELD_RECORDS_MAX)] = HELD_RECORDS_MAX,
) -> Any:
    """Usage that no bill charges, since nothing proves that a gateway wrote it for a key of its tenant, or a record before it is missing;
    in the order of the log. `next` goes into `after` for the next page."""
    where = HeldFilter(tenant_asked(caller, tenant), code or "", everything=everything)
    partition, offset = map(int, after.split("/")) if after else FIRST
    page = find_held(parts.clickhouse, where, (partition, offset), limit)
    more = f"{page[-1].at.partition}/{page[-1].at.offset}" if len(page) == limit else ""
    return {"held": [record.to_json() for record in page], "next": more}
