"""What a bill needs, read from ClickHouse alone: summed by the engine, except executions that share an invocation key.

The first source of the pure functions in `rating/`; the second is Kafka (`bill_from_log`). The SQL of the rules stands beside them in `rating.rules`:
`tests/integration/projections/test_books.py` and the biller compare the two to the micro-unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from events.facts.bills import BILL_COUNTERS, BillCounts
from events.facts.meters import METERS
from events.facts.topics import TOPICS
from events.log.partitioner import partition_of
from projections.catalog.record_sets import RECORDS_OF_SETS
from projections.ingest.clickhouse import ClickHouse
from projections.usage.held import HELD_AT
from rating.bill import Bill, make_bill
from rating.book import PriceBook, book_version
from rating.rules import BILLABLE_SQL, EFFECTIVE_US_SQL, VOIDED, KeyWindows, effective_us
from rating.statement import Bucket, Cutoff, Statement, rate

Body = Mapping[str, Any]
EXCLUDED_MAX = 10_000
"""Offsets that a bill names, about 40 KB; each was written off by two people, alone or in a set."""
LISTED_MAX = 10
"""Unreadable records that a message names; the others are counted."""
SHARED_KEYS_PAGE = 50_000
"""Executions of shared invocation keys that are in memory at once. Their number has no bound: a tenant who repeats calls gets bills, too."""

_BELOW = (
    "tenant = {tenant:String} AND kafka_partition = {partition:Int32} AND kafka_offset < {cut:Int64}"
    " AND kafka_offset NOT IN {excluded:Array(Int64)}"
)
_EXCEPTIONS = {
    "held": ("kafka_offset", HELD_AT),
    "repeated": (
        "at",
        "SELECT arrayJoin(arrayPopFront(arraySort(groupArray(kafka_offset)))) AS at FROM below GROUP BY event_id HAVING count() > 1",
    ),
    "taken_back": ("toString(voided)", f"SELECT voided FROM below WHERE fact = '{VOIDED}'"),
    "shared": (
        "hex(invocation_key)",
        "SELECT invocation_key FROM due WHERE invocation_key != '' GROUP BY invocation_key HAVING count() > 1",
    ),
}
"""Of most tenants few: what is held for this cut (K13; the verifier must be past it), offsets of records whose event_id came before, event_ids
that a void names, and keys that several executions have. Each as text and by a statement that may use those before it."""
_GIVEN = {
    "held": "SELECT arrayJoin({held:Array(Int64)})",
    "repeated": "SELECT arrayJoin({repeated:Array(Int64)})",
    "taken_back": "SELECT toUUID(arrayJoin({taken_back:Array(String)}))",
    "shared": "SELECT unhex(arrayJoin({shared:Array(String)}))",
}
EXCEPTIONS_MAX = 200
"""So many are given as parameters. The engine plans a subquery again wherever its name stands, which took 0.6 s a bill."""


def _with(exceptions: Mapping[str, str]) -> str:
    return f"""
WITH
    below AS (SELECT * FROM usage_rows WHERE {_BELOW} AND kafka_offset NOT IN ({exceptions["held"]})),
    counted AS (
        SELECT *, {EFFECTIVE_US_SQL} AS effective, {BILLABLE_SQL} AS billable FROM below WHERE kafka_offset NOT IN ({exceptions["repeated"]})
    ),
    due AS (SELECT * FROM counted WHERE billable AND event_id NOT IN ({exceptions["taken_back"]}))
"""


_SUMS = ", ".join(f"sum(toInt64({m})) AS sum_{m}" for m in METERS)


class UsageTable:
    """One tenant's usage in ClickHouse. The table must be dense below the cuts asked for: see `wait` of the biller."""

    def __init__(self, clickhouse: ClickHouse, tenant: str) -> None:
        self._clickhouse, self._tenant = clickhouse, tenant
        self.partition = partition_of(tenant.encode(), TOPICS["usage"].partitions)

    def statement(self, cutoff: Cutoff, book: PriceBook) -> Statement:
        """The statement at a cut-off, as `StatementBuilder` would build it from the log."""
        params: dict[str, object] = {
            "tenant": self._tenant,
            "partition": self.partition,
            "cut": cutoff.cuts.get(self.partition, 0),
            "until": cutoff.until,
            "bounds": list(book.bounds),
            "excluded": sorted(cutoff.excluded) or [-1],
            "decided_position": cutoff.decided_position,
        }
        params, exceptions = self._exceptions(params)
        counts = self._repeats(params, exceptions)
        epochs = self._epochs(params, exceptions, counts)
        usage = self._many(params, exceptions, counts)
        self._few(params, exceptions, cutoff, book, usage, counts)
        return Statement(rate({bucket: tuple(sums) for bucket, sums in usage.items()}, book), BillCounts(**counts), epochs)

    def _exceptions(self, params: Mapping[str, object]) -> tuple[dict[str, object], dict[str, str]]:
        """The parameters with those of the exceptions that are few; and each as a subquery, of its parameter or of the tables."""
        given, exceptions = dict(params), {name: sql for name, (_, sql) in _EXCEPTIONS.items()}
        for name, (text, sql) in _EXCEPTIONS.items():
            asked = f"{_with(exceptions)} SELECT DISTINCT {text} AS one FROM ({sql}) LIMIT {EXCEPTIONS_MAX + 1}"
            found = [row["one"] for row in self._clickhouse.rows(asked, given)]
            if len(found) <= EXCEPTIONS_MAX:
                given[name], exceptions[name] = found, _GIVEN[name]
        return given, exceptions

    def _repeats(self, params: Mapping[str, object], exceptions: Mapping[str, str]) -> dict[str, int]:
        """Copies, conflicts and held: classes that ask for no order among executions."""
        counts = dict.fromkeys(BILL_COUNTERS, 0)
        if params.get("repeated") != []:
            (repeats,) = self._clickhouse.rows(
                f"""{_with(exceptions)} SELECT sum(first_times - 1) AS copied, sum(times - first_times) AS conflicting FROM (
                    SELECT event_id, sum(n) AS times, argMin(n, at) AS first_times
                    FROM (SELECT event_id, sha256, count() AS n, min(kafka_offset) AS at FROM below GROUP BY event_id, sha256)
                    GROUP BY event_id
                )""",
                params,
            )
            counts |= {name: int(count) for name, count in repeats.items()}
        if params.get("held") != []:
            held = f"SELECT count() AS held FROM usage_rows WHERE {_BELOW} AND kafka_offset IN ({exceptions['held']})"
            counts["held"] = int(self._clickhouse.value(held, params))
        return counts

    def _many(self, params: Mapping[str, object], exceptions: Mapping[str, str], counts: dict[str, int]) -> dict[Bucket, list[int]]:
        """Executions whose key no other execution has are billed: the engine sums them by what prices them."""
        rows = self._clickhouse.rows(
            f"""{_with(exceptions)}
            SELECT model, model_version, provider, toInt64(arrayCount(b -> b <= effective, {{bounds:Array(Int64)}})) AS passed,
                effective >= {{until:Int64}} AS carried, count() AS facts, countIf(effective != occurred_at) AS retimed, {_SUMS}
            FROM due WHERE invocation_key NOT IN ({exceptions["shared"]})
            GROUP BY model, model_version, provider, passed, carried""",
            params,
        )
        usage: dict[Bucket, list[int]] = {}
        for row in rows:
            counts["retimed"] += int(row["retimed"])
            if row["carried"]:
                counts["carried"] += int(row["facts"])
                continue
            counts["claimed"] += int(row["facts"])
            bucket = Bucket(row["model"], row["model_version"], row["provider"], int(row["passed"]))
            usage[bucket] = [int(row[f"sum_{m}"]) for m in METERS]
        return usage

    def _few(
        self,
        params: Mapping[str, object],
        exceptions: Mapping[str, str],
        cutoff: Cutoff,
        book: PriceBook,
        usage: dict[Bucket, list[int]],
        counts: dict[str, int],
    ) -> None:
        """Executions that share a key: in log order, the first bills and the others within a day repeat it (K11)."""
        windows = KeyWindows()
        for row in self._shared(params, exceptions):
            effective = effective_us(int(row["occurred_at"]), int(row["append_us"]))
            if windows.repeats(row["key_hex"].encode(), effective):
                counts["duplicate"] += 1
                continue
            counts["retimed"] += effective != int(row["occurred_at"])
            if effective >= cutoff.until:
                counts["carried"] += 1
                continue
            counts["claimed"] += 1
            passed = sum(bound <= effective for bound in book.bounds)
            sums = usage.setdefault(Bucket(row["model"], row["model_version"], row["provider"], passed), [0] * len(METERS))
            for i, meter in enumerate(METERS):
                sums[i] += int(row[meter])

    def _shared(self, params: Mapping[str, object], exceptions: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        if params.get("shared") == []:
            return
        after = -1
        while True:
            rows = self._clickhouse.rows(
                f"""{_with(exceptions)}
                SELECT toInt64(kafka_offset) AS at, hex(invocation_key) AS key_hex, occurred_at, kafka_time_us AS append_us,
                    model, model_version, provider, {", ".join(METERS)}
                FROM due WHERE invocation_key IN ({exceptions["shared"]}) AND kafka_offset > {{after:Int64}}
                ORDER BY kafka_offset LIMIT {SHARED_KEYS_PAGE}""",
                {**params, "after": after},
            )
            yield from rows
            if len(rows) < SHARED_KEYS_PAGE:
                return
            after = int(rows[-1]["at"])

    def _epochs(self, params: Mapping[str, object], exceptions: Mapping[str, str], counts: dict[str, int]) -> frozenset[str]:
        """The producers of what counts; and what is missing of them, unbilled and voided."""
        rows = self._clickhouse.rows(
            f"""{_with(exceptions)} SELECT epoch, greatest(0, toInt64(max(sequence)) - toInt64(count())) AS missing,
                countIf(NOT billable) AS unbilled, countIf(billable AND event_id IN ({exceptions["taken_back"]})) AS voided
            FROM counted GROUP BY epoch""",
            params,
        )
        for name in ("missing", "unbilled", "voided"):
            counts[name] = sum(int(row[name]) for row in rows)
        return frozenset(str(row["epoch"]) for row in rows)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Unreadable records of a tenant's usage partition below a cut. `open` ones may be the tenant's and hold its bill back, at most `LISTED_MAX`
    are named; `mistaken` are those of them whose write-off names other bytes than lie there, so that it says nothing."""

    open: tuple[int, ...]
    mistaken: tuple[int, ...]
    excluded: tuple[int, ...]
    """The others: written off by their bytes."""


def unreadable_below(clickhouse: ClickHouse, tenant: str, below: int) -> Unreadable:
    """By the tombstones of the table and the write-offs of the history: a write-off counts for the very bytes it names. A record may be the
    tenant's when its key says so, or when a chain of the tenant misses a record (K9, K13)."""
    partition = partition_of(tenant.encode(), TOPICS["usage"].partitions)
    params: dict[str, object] = {"tenant": tenant, "partition": partition, "below": below}
    any_sql = "SELECT count() FROM usage WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64} AND readable = 0"
    if not clickhouse.value(any_sql, params):
        return Unreadable((), (), ())
    may_be_own = """at IN (SELECT kafka_offset FROM usage_held_rows FINAL
            WHERE kafka_partition = {partition:Int32} AND code = 'unreadable' AND tenant = {tenant:String})
        OR (SELECT count() FROM usage_held_rows FINAL WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64}
            AND tenant = {tenant:String} AND code = 'chain_broken' AND (freed_at < 0 OR freed_at >= {below:Int64})) > 0"""
    # First the few offsets, by one narrow column; then what they are now, since a tombstone may have been replaced.
    tombstones = """SELECT toInt64(kafka_offset) AS at, lower(hex(sha256)) AS hash FROM usage FINAL
        WHERE kafka_partition = {partition:Int32} AND readable = 0 AND kafka_offset IN (
            SELECT kafka_offset FROM usage WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64} AND readable = 0)"""
    given_up = f"""SELECT at, groupUniqArray(hash) AS hashes FROM (
            SELECT JSONExtractInt(body, 'offset') AS at, JSONExtractString(body, 'sha256') AS hash FROM history
            WHERE topic = 'bills' AND fact = 'RecordWrittenOff' AND JSONExtractString(body, 'topic') = 'usage'
            AND JSONExtractInt(body, 'partition') = {{partition:Int32}}
            UNION ALL
            SELECT offset AS at, sha256 AS hash FROM ({RECORDS_OF_SETS})
            WHERE topic = 'usage' AND partition = {{partition:Int32}} AND approver != ''
        ) GROUP BY at"""
    (row,) = clickhouse.rows(
        f"""SELECT arraySort(groupArrayIf({EXCLUDED_MAX + 1})(at, honoured)) AS excluded,
            arraySlice(arraySort(groupArrayIf(at, NOT honoured AND own)), 1, {LISTED_MAX}) AS open,
            arraySlice(arraySort(groupArrayIf(at, NOT honoured AND own AND notEmpty(hashes))), 1, {LISTED_MAX}) AS mistaken
        FROM (SELECT t.at AS at, w.hashes AS hashes, has(w.hashes, t.hash) AS honoured, {may_be_own} AS own
            FROM ({tombstones}) AS t LEFT JOIN ({given_up}) AS w ON t.at = w.at)""",
        params,
    )
    return Unreadable(tuple(map(int, row["open"])), tuple(map(int, row["mistaken"])), tuple(map(int, row["excluded"])))


class TooManyWrittenOff(Exception):
    """More records of a partition are written off than a bill can name."""


def price_book_of(clickhouse: ClickHouse, book: str, position: int | None = None) -> PriceBook:
    """A book as it was decided up to a position of the store (None: all of it)."""
    rows = clickhouse.rows(
        """SELECT body, position FROM history WHERE topic = 'prices' AND fact = 'PriceBookPublished' AND key = {book:String}
        AND ({position:Int64} < 0 OR position <= {position:Int64}) ORDER BY step""",
        {"book": book, "position": -1 if position is None else position},
    )
    return PriceBook(book_version(json.loads(row["body"]), int(row["position"])) for row in rows)


def cuts_of(clickhouse: ClickHouse, tenant: str, numbers: Sequence[int]) -> list[Body]:
    """The bodies of a tenant's `BillCutFixed` with these numbers, in order; hashes as bytes again."""
    rows = clickhouse.rows(
        """SELECT body FROM history WHERE topic = 'bills' AND fact = 'BillCutFixed' AND key = {tenant:String}
        AND JSONExtractInt(body, 'number') IN {numbers:Array(Int64)} ORDER BY step""",
        {"tenant": tenant, "numbers": list(numbers)},
    )
    bodies = [json.loads(row["body"]) for row in rows]
    return [{**body, "previous_bill_sha256": bytes.fromhex(body["previous_bill_sha256"])} for body in bodies]


def excluded_by(clickhouse: ClickHouse, tenant: str, number: int) -> frozenset[int]:
    """The offsets that an issued bill left out."""
    rows = clickhouse.rows(
        """SELECT JSONExtract(body, 'excluded', 'Array(Int64)') AS excluded FROM history WHERE topic = 'bills' AND fact = 'BillIssued'
        AND key = {tenant:String} AND JSONExtractInt(body, 'number') = {number:Int64}""",
        {"tenant": tenant, "number": number},
    )
    return frozenset(int(offset) for row in rows for offset in row["excluded"])


def statement_of_cut(clickhouse: ClickHouse, cut: Body, excluded: frozenset[int]) -> Statement:
    """The statement that a cut pins, without what its bill excluded."""
    ends = {c["partition"]: c["offset"] for c in cut["cuts"]}
    cutoff = Cutoff(ends, cut["until"], cut["rating_version"], excluded, cut["decided_position"])
    return UsageTable(clickhouse, cut["tenant"]).statement(cutoff, price_book_of(clickhouse, cut["price_book"], cut["decided_position"]))


def bill_from_tables(clickhouse: ClickHouse, cut: Body, before: Body | None, ended: frozenset[str]) -> Bill:
    """The bill of a cut against the one before it (None for number 1), which was issued. Raises TooManyWrittenOff."""
    partition = partition_of(str(cut["tenant"]).encode(), TOPICS["usage"].partitions)
    below = next((c["offset"] for c in cut["cuts"] if c["partition"] == partition), 0)
    excluded = unreadable_below(clickhouse, str(cut["tenant"]), below).excluded
    if len(excluded) > EXCLUDED_MAX:
        raise TooManyWrittenOff(f"more than {EXCLUDED_MAX} records of usage/{partition} are written off below {below}")
    earlier = statement_of_cut(clickhouse, before, excluded_by(clickhouse, cut["tenant"], before["number"])) if before else Statement()
    return make_bill(cut, statement_of_cut(clickhouse, cut, frozenset()), earlier, ended, excluded)
