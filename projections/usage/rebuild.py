"""Rebuilds the usage tables beside the live ones from the log's first record, compares row by row, and puts them in place if asked (K10).

The same sink, validator and SQL as the live worker, on another table. Works while the workers run: both are compared up to a common cut.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from events.facts.topics import TOPICS
from events.log.client import LogUnavailable, Reader
from events.log.record import LogRecord
from events.process.settings import Settings
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import Chunk, DeadLetter
from projections.ingest.table_offsets import dense_end
from projections.usage.insert_plans import InsertPlans
from projections.usage.sink import UsageSink
from projections.usage.table import COLUMNS, LOG_COLUMNS
from projections.usage.views import usage_statements, view_names

logger = logging.getLogger(__name__)
TABLE, BESIDE = "usage", "usage_rebuilt"
BATCH = 20_000
COMPARED_AT_ONCE = 1_000_000
"""Offsets whose rows are compared in one query: bounds its memory."""
DIFFERENCES_MAX = 100
"""Differing rows that are listed; the rest are counted."""
PATIENCE_S = 60.0
Progress = Callable[[int, int], None]
"""(records done, records in all)"""


@dataclass(frozen=True, slots=True)
class Difference:
    """One offset whose rows differ, or that only one side has."""

    partition: int
    offset: int
    what: Literal["only_live", "only_rebuilt", "differs"]
    columns: tuple[str, ...] = ()


@dataclass(slots=True)
class Report:
    cut: dict[int, int]
    """partition → offset below which both were compared."""
    rows: int = 0
    unreadable: int = 0
    seconds: float = 0.0
    differences: int = 0
    listed: list[Difference] = field(default_factory=list[Difference])
    kept: str = ""
    """The table that was kept beside the live one, if any."""

    @property
    def equal(self) -> bool:
        return self.differences == 0


class LiveIsBehind(Exception):
    """The live table did not come up to the cut in time: no worker runs, or it waits for a person."""


class Rebuild:
    """`run` fills and compares; then `switch`, `drop`, or neither. One at a time per database."""

    def __init__(self, settings: Settings) -> None:
        self._clickhouse = ClickHouse(settings)
        self._reader, schemas = Reader(settings, "replay"), Reader(settings, "replay-schemas")
        self._unreadable = 0
        partitions = range(TOPICS["usage"].partitions)
        self._sink = UsageSink(
            self._clickhouse,
            InsertPlans(schemas),
            lambda partition, fence: 0,
            self._count_dead,
            lambda: None,
            table=BESIDE,
            rows_max=BATCH,
        )
        self._partitions = tuple(partitions)

    def run(self, progress: Progress = lambda done, total: None) -> Report:
        """Raises LogUnavailable, LiveIsBehind."""
        began = time.monotonic()
        self.drop()
        for statement in usage_statements(BESIDE):
            self._clickhouse.command(statement)
        bounds = self._reader.bounds("usage")
        starts = {p: bounds["usage", p][0] for p in self._partitions}
        cut = {p: bounds["usage", p][1] for p in self._partitions}
        self._fill(starts, cut, progress)
        self._wait_for_live(cut)
        report = Report(cut, sum(cut.values()) - sum(starts.values()), self._unreadable, kept=BESIDE)
        for partition in self._partitions:
            self._compare(partition, starts[partition], cut[partition], report)
        report.seconds = time.monotonic() - began
        return report

    def switch(self) -> str:
        """Puts the rebuilt table in the live one's place and returns the name under which the old one is kept. What the workers wrote
        since the cut comes along: rows that are there twice collapse (K8)."""
        names = ", ".join(f"`{c.name}`" for c in (*LOG_COLUMNS, *COLUMNS))
        starts = {p: first for (_, p), (first, _) in self._reader.bounds("usage").items()}

        def bring_over(source: str, into: str, partitions: Iterable[int]) -> None:
            for p in partitions:
                due = dense_end(self._clickhouse, into, p, start=starts[p])
                self._clickhouse.command(
                    f"INSERT INTO {into} ({names}) SELECT {names} FROM {source} FINAL WHERE kafka_partition = {p} AND kafka_offset >= {due}",
                    settings={"max_partitions_per_insert_block": 0},
                )

        bring_over(TABLE, BESIDE, self._partitions)  # so that there is little to bring after the exchange
        self._clickhouse.command(f"EXCHANGE TABLES {TABLE} AND {BESIDE}")
        # An insert under way during the exchange still goes to the old table: of records that the log has by now.
        ends, left = self._reader.end_offsets("usage"), set(self._partitions)
        end = time.monotonic() + PATIENCE_S
        while True:
            bring_over(BESIDE, TABLE, left)
            have = {p: dense_end(self._clickhouse, TABLE, p, start=starts[p]) for p in left}
            left = {p for p in left if have[p] < ends["usage", p]}
            if not left:
                break
            if time.monotonic() > end:
                p = min(left)
                raise LiveIsBehind(f"after the exchange {TABLE} has usage/{p} up to {have[p]}, the log had {ends['usage', p]} then")
            time.sleep(0.1)
        kept = f"usage_before_{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}"
        self._drop_views()
        self._clickhouse.command(f"RENAME TABLE {BESIDE} TO {kept}")
        for statement in usage_statements(TABLE)[1:]:
            self._clickhouse.command(statement)
        return kept

    def drop(self) -> None:
        self._drop_views()
        self._clickhouse.command(f"DROP TABLE IF EXISTS {BESIDE}")

    def close(self) -> None:
        self._reader.close()

    def _newest(self, partition: int) -> int:
        sql = f"SELECT coalesce(maxOrNull(toInt64(kafka_offset)), -1) AS n FROM {TABLE} WHERE kafka_partition = {{partition:Int32}}"
        return int(self._clickhouse.value(sql, {"partition": partition}))

    # --- filling

    def _fill(self, starts: dict[int, int], cut: dict[int, int], progress: Progress) -> None:
        left = {p for p in self._partitions if starts[p] < cut[p]}
        done, total, heard = 0, sum(cut[p] - starts[p] for p in self._partitions), time.monotonic()
        progress(0, total)
        self._reader.assign({("usage", p): starts[p] for p in left})
        due = dict(starts)
        while left:
            by_partition = dict[int, list[LogRecord]]()
            for r in self._reader.poll(BATCH, 0.5):
                if r.offset < cut[r.partition]:
                    by_partition.setdefault(r.partition, []).append(r)
            for p, records in by_partition.items():
                assert records[0].offset == due[p], f"usage/{p}: due {due[p]}, came {records[0].offset}"
                due[p] = records[-1].offset + 1
                left -= {p} if due[p] >= cut[p] else set()
            if by_partition:
                heard = time.monotonic()
                self._sink.write(self._sink.prepare([Chunk("usage", p, records) for p, records in by_partition.items()]))
                done += sum(map(len, by_partition.values()))
                progress(done, total)
            elif time.monotonic() - heard > PATIENCE_S:
                raise LogUnavailable(f"usage: nothing came for {PATIENCE_S:g} s, partitions {sorted(left)} are not read")

    def _count_dead(self, dead_letters: Sequence[DeadLetter]) -> None:
        """They were published when they were first read; here they only leave a tombstone."""
        self._unreadable += len(dead_letters)

    def _wait_for_live(self, cut: dict[int, int]) -> None:
        """Until the workers have come past the cut. Rows that are missing below it are differences, not a reason to wait."""
        end = time.monotonic() + PATIENCE_S
        for p in self._partitions:
            while (have := self._newest(p) + 1) < cut[p]:
                if time.monotonic() > end:
                    raise LiveIsBehind(f"the live table has usage/{p} up to {have}, the log had {cut[p]} when the rebuild began")
                time.sleep(0.2)

    # --- comparing

    def _compare(self, partition: int, start: int, cut: int, report: Report) -> None:
        for first in range(start, cut, COMPARED_AT_ONCE):
            params: dict[str, object] = {"partition": partition, "first": first, "end": min(first + COMPARED_AT_ONCE, cut)}
            live, rebuilt = (self._digest(table, params) for table in (TABLE, BESIDE))
            if live != rebuilt:
                self._list_differences(params, report)

    def _digest(self, table: str, params: dict[str, object]) -> dict[str, Any]:
        (row,) = self._clickhouse.rows(f"SELECT count() AS n, groupBitXor(h) AS x, sum(h) AS s FROM ({_hashed(table)})", params)
        return row

    def _list_differences(self, params: dict[str, object], report: Report) -> None:
        joined = f"({_hashed(TABLE)}) AS l FULL OUTER JOIN ({_hashed(BESIDE)}) AS r ON l.kafka_offset = r.kafka_offset WHERE l.h != r.h OR l.there != r.there"
        report.differences += int(self._clickhouse.value(f"SELECT count() AS n FROM {joined}", params))
        room = DIFFERENCES_MAX - len(report.listed)
        rows = self._clickhouse.rows(
            f"SELECT greatest(l.kafka_offset, r.kafka_offset) AS at, l.there AS live, r.there AS rebuilt FROM {joined} ORDER BY at LIMIT {room}",
            params,
        )
        partition = int(str(params["partition"]))
        for row in rows:
            if row["live"] and row["rebuilt"]:
                report.listed.append(Difference(partition, int(row["at"]), "differs", self._columns(partition, int(row["at"]))))
            else:
                report.listed.append(Difference(partition, int(row["at"]), "only_live" if row["live"] else "only_rebuilt"))

    def _columns(self, partition: int, offset: int) -> tuple[str, ...]:
        where = "WHERE t.kafka_partition = {partition:Int32} AND t.kafka_offset = {offset:Int64}"
        names = ", ".join(f"hex(toString(t.`{c.name}`)) AS `{c.name}`" for c in (*LOG_COLUMNS, *COLUMNS))
        at: dict[str, object] = {"partition": partition, "offset": offset}
        sides = [self._clickhouse.rows(f"SELECT {names} FROM {table} AS t FINAL {where}", at) for table in (TABLE, BESIDE)]
        if not all(sides):
            return ()
        (live, *_), (rebuilt, *_) = sides
        return tuple(name for name in live if live[name] != rebuilt[name])

    def _drop_views(self) -> None:
        for name in view_names(BESIDE):
            self._clickhouse.command(f"DROP VIEW IF EXISTS {name}")


def _hashed(table: str) -> str:
    names = ", ".join(f"`{c.name}`" for c in (*LOG_COLUMNS, *COLUMNS))
    return f"""SELECT kafka_offset, sipHash64({names}) AS h, 1 AS there FROM {table} FINAL
        WHERE kafka_partition = {{partition:Int32}} AND kafka_offset >= {{first:Int64}} AND kafka_offset < {{end:Int64}}
        SETTINGS do_not_merge_across_partitions_select_final = 1"""
