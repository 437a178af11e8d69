"""What people ask of usage: rows without doubles, facts counted once, and metering by tenant, model, version and day.

Recomputed when asked, never added up (K10), so that any number of copies, retries and rebuilds gives the same figures.
"""

from __future__ import annotations

from events.facts.accounts import DEFAULT_TIMEZONE
from events.facts.meters import METERS
from projections.usage.held import STATEMENTS as HELD_STATEMENTS
from projections.usage.table import COLUMNS, LOG_COLUMNS, alter_settings, create_table
from rating.rules import BILLABLE_SQL, EFFECTIVE_US_SQL, RETIMED_SQL

_SUMMED = (*METERS, "queue_us")


def usage_statements(table: str) -> tuple[str, ...]:
    """The tables of usage and the views that read them; `table` is `usage` for the live ones."""
    return (create_table(table), alter_settings(table), *HELD_STATEMENTS, *views(table))


def views(table: str) -> tuple[str, ...]:
    """The views over a usage table; those of `usage` have the plain names, others carry the table's name as a suffix."""
    suffix = table.removeprefix("usage")
    return (_rows(table, suffix), _unreadable(table, suffix), _counted(suffix), _daily(suffix))


def view_names(table: str) -> tuple[str, ...]:
    suffix = table.removeprefix("usage")
    return tuple(f"{name}{suffix}" for name in ("metering_daily", "usage_counted", "usage_unreadable", "usage_rows"))


def _rows(table: str, suffix: str) -> str:
    names = ", ".join(f"`{c.name}`" for c in (*LOG_COLUMNS, *COLUMNS))
    return f"""
CREATE OR REPLACE VIEW usage_rows{suffix} AS
SELECT {names}, occurred, appended
FROM {table} FINAL WHERE readable = 1
SETTINGS do_not_merge_across_partitions_select_final = 1
COMMENT 'Every readable record of topic usage, each offset once. Read this, not the table behind it'
"""


def _unreadable(table: str, suffix: str) -> str:
    return f"""
CREATE OR REPLACE VIEW usage_unreadable{suffix} AS
SELECT kafka_partition, kafka_offset, kafka_time_us, schema_id, sha256, appended
FROM {table} FINAL WHERE readable = 0
SETTINGS do_not_merge_across_partitions_select_final = 1
COMMENT 'Records of topic usage that nobody could read: no bill is cut over one of them. Reason and bytes are in dead_letters'
"""


def _counted(suffix: str) -> str:
    comment = (
        "Every fact once: the first record of its event_id that is not held, or was decided to count. copies = how often it was written;"
        " conflict = later ones had other bytes;"
        " is_voided = its answer never reached the caller; metered = a succeeded execution that is neither voided nor shadow, which alone bills"
        " charge; effective_at = occurred_at, or the append time where that is out of bounds (retimed)"
    )
    return f"""
CREATE OR REPLACE VIEW usage_counted{suffix} AS
WITH whole AS (
    SELECT * FROM usage_rows{suffix} WHERE (kafka_partition, kafka_offset) NOT IN (
        SELECT kafka_partition, toUInt64(kafka_offset) FROM usage_held_all WHERE decision != 'count')
)
SELECT u.*,
    greatest(c.copies, 1) AS copies,
    c.conflict = 1 AS conflict,
    u.fact = 'InvocationSettled' AND (u.tenant, u.event_id) IN (SELECT tenant, voided FROM whole WHERE fact = 'InvocationVoided') AS is_voided,
    {BILLABLE_SQL} AND NOT is_voided AS metered,
    {EFFECTIVE_US_SQL} AS effective_at,
    {RETIMED_SQL} AS retimed
FROM whole AS u
LEFT JOIN (
    SELECT tenant, event_id, count() AS copies, min(sha256) != max(sha256) AS conflict, min((kafka_partition, kafka_offset)) AS first
    FROM whole GROUP BY tenant, event_id HAVING copies > 1
) AS c ON c.tenant = u.tenant AND c.event_id = u.event_id
WHERE c.copies = 0 OR (u.kafka_partition, u.kafka_offset) = c.first
COMMENT '{comment}'
"""


def _daily(suffix: str) -> str:
    comment = (
        "Tenant, model, version and day in the time zone of the tenant: succeeded and the sums of the meters = metered executions; failed = other"
        " answers; refused = calls turned away; voided and shadow ones apart; exact quantiles of the latency of metered executions"
    )
    sums = ",\n    ".join(f"sumIf(u.{m}, metered) AS {m}" for m in _SUMMED)
    zone = f"if(t.timezone = '', '{DEFAULT_TIMEZONE}', t.timezone)"
    return f"""
CREATE OR REPLACE VIEW metering_daily{suffix} AS
WITH u.fact = 'InvocationSettled' AS settled
SELECT u.tenant AS tenant, model, model_version, toDate(formatDateTime(fromUnixTimestamp64Micro(effective_at), '%Y-%m-%d', {zone})) AS day,
    countIf(metered) AS succeeded,
    countIf(settled AND NOT is_voided AND NOT shadow AND outcome != 'succeeded') AS failed,
    sumIf(u.count, NOT settled) AS refused,
    countIf(is_voided) AS voided_calls,
    countIf(settled AND shadow AND NOT is_voided) AS shadow_calls,
    {sums},
    quantileExactIf(0.5)(latency_us, metered) AS latency_us_p50,
    quantileExactIf(0.95)(latency_us, metered) AS latency_us_p95,
    quantileExactIf(0.99)(latency_us, metered) AS latency_us_p99
FROM usage_counted{suffix} AS u LEFT JOIN tenants AS t ON t.tenant = u.tenant
WHERE fact IN ('InvocationSettled', 'InvocationRefused')
GROUP BY tenant, model, model_version, day
COMMENT '{comment}'
"""
