"""Usage that is held as people work on it: which record, whose, why, and what two people decided about it (K13)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from events.facts.fact import INT64_MAX
from events.log.record import Coordinate
from projections.ingest.clickhouse import ClickHouse

HeldState = Literal["held", "counted", "dismissed"]
HELD_RECORDS_MAX = 1000
"""Of one page."""
FIRST = -1, -1
"""Before every partition and offset."""
_STATES: dict[str, HeldState] = {"": "held", "count": "counted", "dismiss": "dismissed"}
_BOUNDS = {"max_execution_time": 20}

_SQL = """
SELECT kafka_partition AS partition, kafka_offset AS offset, toUnixTimestamp64Micro(appended) AS appended_us, tenant, epoch, sequence, sha256,
    code, decision
FROM usage_held_all
WHERE ({everything:Bool} OR decision = '') AND (kafka_partition, kafka_offset) > ({after_partition:Int32}, {after_offset:Int64})
    AND ({tenant:String} = '' OR tenant = {tenant:String}) AND ({code:String} = '' OR code = {code:String})
    AND ({partition:Int32} < 0 OR kafka_partition = {partition:Int32}) AND kafka_offset BETWEEN {from_offset:Int64} AND {to_offset:Int64}
    AND appended_us >= {since_us:Int64} AND appended_us < {until_us:Int64}
ORDER BY kafka_partition, kafka_offset LIMIT {limit:Int32}
"""


@dataclass(frozen=True, slots=True)
class HeldFilter:
    """Which held usage: every field that is given must hold. `to_offset` is included; the instants are of the append, µs UTC, `until_us`
    excluded; with `everything` also what was decided."""

    tenant: str = ""
    code: str = ""
    partition: int = -1
    from_offset: int = 0
    to_offset: int = INT64_MAX
    since_us: int = 0
    until_us: int = INT64_MAX
    everything: bool = False


@dataclass(frozen=True, slots=True)
class HeldRecord:
    """A usage record that no chain of an opened epoch leads to, or whose key was not its tenant's. `sha256` in hex; `appended_us` in µs UTC."""

    at: Coordinate
    state: HeldState
    tenant: str
    code: str
    epoch: str
    sequence: int
    sha256: str
    appended_us: int

    def to_json(self) -> dict[str, Any]:
        names = ("state", "tenant", "code", "epoch", "sequence", "sha256", "appended_us")
        return {"record": str(self.at), **{name: getattr(self, name) for name in names}}


def find_held(clickhouse: ClickHouse, where: HeldFilter, after: tuple[int, int] = FIRST, limit: int = HELD_RECORDS_MAX) -> list[HeldRecord]:
    """In the order of partition and offset, from the one behind `after`."""
    place = {"after_partition": after[0], "after_offset": after[1], "limit": min(limit, HELD_RECORDS_MAX)}
    rows = clickhouse.rows(_SQL, {**asdict(where), **place}, _BOUNDS)
    return [
        HeldRecord(
            Coordinate("usage", int(r["partition"]), int(r["offset"])),
            _STATES[r["decision"]],
            str(r["tenant"]),
            str(r["code"]),
            str(r["epoch"]),
            int(r["sequence"]),
            str(r["sha256"]),
            int(r["appended_us"]),
        )
        for r in rows
    ]


def all_held(clickhouse: ClickHouse, where: HeldFilter) -> Iterator[HeldRecord]:
    """All that the filter lets through, however many."""
    after = FIRST
    while page := find_held(clickhouse, where, after):
        yield from page
        after = page[-1].at.partition, page[-1].at.offset
