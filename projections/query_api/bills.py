"""Bills as people ask for them: heads newest first, and one period with its lines."""

from __future__ import annotations

from typing import Any

from projections.ingest.clickhouse import ClickHouse

LINES_MAX = 20_000
"""Of one answer: about 5 MB."""
_ORDER = "number, status, model, model_version, provider, meter, book_version, amount_per_micros, per_units, held"
"""Everything that makes a line one line, so that pages neither repeat nor skip one."""
_HEAD = """SELECT status, tenant, period, number, currency, total_micros, digest, toUnixTimestamp64Micro(at) AS at, facts, producers_open,
    records_written_off FROM bills"""
_BOUNDS = {"max_execution_time": 10}


def bills_of(clickhouse: ClickHouse, tenant: str, limit: int) -> list[dict[str, Any]]:
    """Heads of a tenant's bills, newest first; of every tenant when it is empty."""
    sql = f"{_HEAD} WHERE {{tenant:String}} = '' OR tenant = {{tenant:String}} ORDER BY tenant, number DESC, status DESC LIMIT {{limit:Int32}}"
    return [_head(row) for row in clickhouse.rows(sql, {"tenant": tenant, "limit": limit}, _BOUNDS)]


def bill_of(clickhouse: ClickHouse, tenant: str, period: str, lines_from: int = 0) -> dict[str, Any]:
    """Every bill of a period, issued and running, with lines: one page of them, and where the next one begins."""
    params: dict[str, object] = {"tenant": tenant, "period": period, "from": lines_from, "limit": LINES_MAX}
    where = "WHERE tenant = {tenant:String} AND period = {period:String}"
    heads = [_head(row) for row in clickhouse.rows(f"{_HEAD} {where} ORDER BY number, status", params, _BOUNDS)]
    total = int(clickhouse.value(f"SELECT count() FROM bill_lines {where}", params, _BOUNDS))
    lines = clickhouse.rows(
        f"SELECT * FROM bill_lines {where} ORDER BY {_ORDER} LIMIT {{limit:Int32}} OFFSET {{from:Int64}}",
        params,
        _BOUNDS,
    )
    for head in heads:
        head["lines"] = [
            {**{k: v for k, v in line.items() if k not in ("status", "tenant", "period", "number")}, "held": bool(line["held"])}
            for line in lines
            if (line["status"], line["number"]) == (head["status"], head["number"])
        ]
    end = lines_from + len(lines)
    return {
        "tenant": tenant,
        "period": period,
        "bills": heads,
        "total_micros": sum(head["total_micros"] for head in heads),
        "lines_total": total,
        "next_lines_from": end if lines and end < total else None,
    }


def whole_bill_of(clickhouse: ClickHouse, tenant: str, period: str) -> dict[str, Any]:
    """`bill_of` with all its lines, page by page. A running bill may change between two pages; an issued one does not."""
    whole = bill_of(clickhouse, tenant, period)
    while whole["next_lines_from"] is not None:
        page = bill_of(clickhouse, tenant, period, whole["next_lines_from"])
        more = {(head["status"], head["number"]): head["lines"] for head in page["bills"]}
        for head in whole["bills"]:
            head["lines"] += more.get((head["status"], head["number"]), [])
        whole["next_lines_from"] = page["next_lines_from"]
    return whole


def _head(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "facts": {k: int(v) for k, v in row["facts"].items()}}
