"""Who used what: executions, meters, outcomes and latency by any dimension, for callers of their own calls and owners of their own models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from events.facts.accounts import KEY_DIMENSIONS
from events.facts.meters import METERS
from projections.ingest.clickhouse import ClickHouse
from rating.rules import EFFECTIVE_US_SQL

ROWS_MAX = 10_000
SPAN_US_MAX = 400 * 86_400_000_000
"""A year and a bit: longer questions belong to SQL."""

OWNER_DIMENSIONS = frozenset({"day", "hour", "model", "model_version", "region", "operation", "outcome"})
"""What the owner of a model may see of its callers: nothing that names one."""
CALLER_DIMENSIONS = OWNER_DIMENSIONS | {"provider", *KEY_DIMENSIONS, "key_id", "user", "error_code"}
ADMIN_DIMENSIONS = CALLER_DIMENSIONS | {"tenant"}

_EXPRESSIONS = {
    "day": "toString(toDate(fromUnixTimestamp64Micro(effective), {zone:String}))",
    "hour": "formatDateTime(toStartOfHour(fromUnixTimestamp64Micro(effective), {zone:String}), '%Y-%m-%dT%H:00', {zone:String})",
}
_SUMS = ",\n    ".join(f"sumIf(toInt64({m}), metered) AS {m}" for m in METERS)


@dataclass(frozen=True, slots=True)
class Question:
    """`since` ≤ time < `until`, µs UTC, by the time that bills go by. Empty `tenant` or `provider` = all (the caller must be allowed that)."""

    since: int
    until: int
    group_by: tuple[str, ...]
    zone: str
    tenant: str = ""
    provider: str = ""
    model: str = ""
    limit: int = ROWS_MAX


def usage(clickhouse: ClickHouse, question: Question) -> tuple[list[dict[str, Any]], bool]:
    """Rows, and whether more were left out. `group_by` must be of the dimensions above: it becomes SQL."""
    assert set(question.group_by) <= ADMIN_DIMENSIONS, "the caller checks against the list for who asks"
    dimensions = [f"{_EXPRESSIONS.get(d, f'toString(`{d}`)')} AS `{d}`" for d in question.group_by]
    names = ", ".join(f"`{d}`" for d in question.group_by)
    limit = min(question.limit, ROWS_MAX)
    sql = f"""
    SELECT {"".join(d + ", " for d in dimensions)}
        countIf(settled) AS executions, countIf(metered) AS succeeded, countIf(settled AND is_voided) AS voided,
        countIf(settled AND shadow AND NOT is_voided) AS shadows, sumIf(`count`, NOT settled) AS refused,
        {_SUMS},
        toInt64(ifNotFinite(avgIf(latency_us, settled), 0)) AS latency_us_mean,
        toInt64(ifNotFinite(quantileTDigestIf(0.99)(latency_us, settled), 0)) AS latency_us_p99
    FROM (
        SELECT *, {EFFECTIVE_US_SQL} AS effective, fact = 'InvocationSettled' AS settled FROM usage_counted
        WHERE fact IN ('InvocationSettled', 'InvocationRefused')
          AND ({{tenant:String}} = '' OR tenant = {{tenant:String}})
          AND ({{provider:String}} = '' OR provider = {{provider:String}})
          AND ({{model:String}} = '' OR model = {{model:String}})
          AND effective >= {{since:Int64}} AND effective < {{until:Int64}}
    )
    {f"GROUP BY {names} ORDER BY {names}" if names else ""}
    LIMIT {{limit:Int32}}"""
    params: dict[str, object] = {
        "tenant": question.tenant,
        "provider": question.provider,
        "model": question.model,
        "since": question.since,
        "until": question.until,
        "zone": question.zone,
        "limit": limit + 1,
    }
    rows = clickhouse.rows(sql, params, {"max_execution_time": 20})
    return rows[:limit], len(rows) > limit
