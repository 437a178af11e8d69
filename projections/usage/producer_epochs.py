"""The epochs of producers as people work on them: open, closed or written off, and when the last fact of each came."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from projections.ingest.clickhouse import ClickHouse

Status = Literal["open", "closed", "written_off"]
EPOCHS_MAX = 1000
"""Epochs shown, those of the newest facts first: each start of a gateway is one."""
NAMES_MAX = 1000
"""Epochs named in one query, which is sent in a URL."""
_BOUNDS = {"max_execution_time": 20}
# Those asked for are found before the limit: an open epoch may be the oldest of all.
_SQL = f"""
SELECT key, member, state FROM document_parts WHERE topic = 'producers'
    AND ({{epoch:String}} = '' OR member = {{epoch:String}}) AND ({{everything:Bool}} OR JSONExtractString(state, 'status') = 'open')
ORDER BY changed_us DESC LIMIT {EPOCHS_MAX}
"""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Instants in µs UTC, 0 for never. `last_fact_us`: when the newest fact of usage came, by the broker's clock."""

    producer: str
    epoch: str
    status: Status
    host: str
    opened_at: int
    closed_at: int
    last_fact_us: int
    requested_by: str
    approver: str
    reason: str


def epochs(clickhouse: ClickHouse, *, only_open: bool = True, epoch: str = "") -> list[Epoch]:
    """Newest first; only that one when `epoch` is given."""
    rows = clickhouse.rows(_SQL, {"epoch": epoch, "everything": not only_open}, _BOUNDS)
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in rows:
        one = cast(dict[str, Any], json.loads(row["state"]))
        if "status" in one:
            found[str(row["member"])] = str(row["key"]), one
    heard = _heard(clickhouse, list(found))
    made = [_epoch(producer, name, one, heard.get(name, 0)) for name, (producer, one) in found.items()]
    return sorted(made, key=lambda e: e.opened_at, reverse=True)


def _heard(clickhouse: ClickHouse, names: list[str]) -> dict[str, int]:
    sql = "SELECT epoch, max(kafka_time_us) AS last_us FROM usage WHERE epoch IN {epochs:Array(String)} GROUP BY epoch"
    asked = [names[start : start + NAMES_MAX] for start in range(0, len(names), NAMES_MAX)]
    return {str(r["epoch"]): int(r["last_us"]) for some in asked for r in clickhouse.rows(sql, {"epochs": some}, _BOUNDS)}


def _epoch(producer: str, name: str, known: dict[str, Any], last_fact_us: int) -> Epoch:
    return Epoch(
        producer,
        name,
        known["status"],
        str(known.get("host", "")),
        int(known.get("opened_at", 0)),
        int(known.get("closed_at", 0)),
        last_fact_us,
        str(known.get("requested_by", "")),
        str(known.get("approver", "")),
        str(known.get("reason", "")),
    )
