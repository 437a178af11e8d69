"""Bills as people ask for them: heads newest first, and one period with its lines."""

from __future__ import annotations

from typing import Any

from projections.clickhouse import ClickHouse

LINES_MAX = 20_000
_HEAD = """SELECT status, tenant, period, number, currency, total_micros, digest, toUnixTimestamp64Micro(at) AS at, facts, producers_open,
    records_written_off FROM bills"""
_BOUNDS = {"max_execution_time": 10}


def bills_of(clickhouse: ClickHouse, tenant: str, limit: int) -> list[dict[str, Any]]:
    """Heads of a tenant's bills, newest first; of every tenant when it is empty."""
    sql = f"{_HEAD} WHERE {{tenant:String}} = '' OR tenant = {{tenant:String}} ORDER BY tenant, number DESC, status DESC LIMIT {{limit:Int32}}"
    return [_head(row) for row in clickhouse.rows(sql, {"tenant": tenant, "limit": limit}, _BOUNDS)]


def bill_of(clickhouse: ClickHouse, tenant: str, period: str) -> dict[str, Any]:
    """Every bill of a period, issued and running, with lines."""
    params: dict[str, object] = {"tenant": tenant, "period": period, "limit": LINES_MAX}
    where = "WHERE tenant = {tenant:String} AND period = {period:String}"
    heads = [_head(row) for row in clickhouse.rows(f"{_HEAD} {where} ORDER BY number, status", params, _BOUNDS)]
    lines = clickhouse.rows(
        f"SELECT * FROM bill_lines {where} ORDER BY number, model, model_version, provider, meter, book_version LIMIT {{limit:Int32}}",
        params,
        _BOUNDS,
    )
    for head in heads:
        head["lines"] = [
            {**{k: v for k, v in line.items() if k not in ("status", "tenant", "period", "number")}, "held": bool(line["held"])}
            for line in lines
            if (line["status"], line["number"]) == (head["status"], head["number"])
        ]
    return {"tenant": tenant, "period": period, "bills": heads, "total_micros": sum(head["total_micros"] for head in heads)}


def _head(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "facts": {k: int(v) for k, v in row["facts"].items()}}
