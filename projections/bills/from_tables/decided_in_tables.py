"""What people decided that bills need, read from ClickHouse alone, for many tenants at once: cuts, price books, exclusions, write-offs.

The table's half; the log's is `decided_for_bills`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from events.facts.topics import TOPICS
from events.log.partitioner import partition_of
from projections.catalog.record_sets import RECORDS_OF_SETS
from projections.ingest.clickhouse import ClickHouse
from rating.book import BookVersion, PriceBook, book_version

Body = Mapping[str, Any]
EXCLUDED_MAX = 10_000
"""Offsets that a bill names, about 40 KB; each was written off by two people, alone or in a set."""
LISTED_MAX = 10
"""Unreadable records that a message names; the others are counted."""
NAMED_MAX = 250
"""Tenants of one question."""
_PAIRS = """JSONExtractInt(body, 'number') AS number FROM history WHERE topic = 'bills' AND fact = {fact:String}
    AND key IN {tenants:Array(String)} AND (key, JSONExtractInt(body, 'number')) IN (
        SELECT p.1, p.2 FROM (SELECT arrayJoin(arrayZip({tenants:Array(String)}, {numbers:Array(Int64)})) AS p))
    ORDER BY key, step"""


def usage_partition(tenant: str) -> int:
    return partition_of(tenant.encode(), TOPICS["usage"].partitions)


def cuts_of(clickhouse: ClickHouse, wanted: Mapping[str, Iterable[int]]) -> dict[str, dict[int, Body]]:
    """Of each tenant the bodies of its `BillCutFixed` with these numbers, those that there are; hashes as bytes again."""
    found: dict[str, dict[int, Body]] = {tenant: {} for tenant in wanted}
    for row in _of_bills(
        clickhouse, "BillCutFixed", "body", [(tenant, number) for tenant, numbers in wanted.items() for number in numbers]
    ):
        body = json.loads(row["body"])
        found[row["key"]][int(row["number"])] = {**body, "previous_bill_sha256": bytes.fromhex(body["previous_bill_sha256"])}
    return found


def excluded_by(clickhouse: ClickHouse, bills: Collection[tuple[str, int]]) -> dict[tuple[str, int], frozenset[int]]:
    """By tenant and number the offsets that issued bills left out."""
    found: dict[tuple[str, int], frozenset[int]] = dict.fromkeys(bills, frozenset())
    for row in _of_bills(clickhouse, "BillIssued", "JSONExtract(body, 'excluded', 'Array(Int64)') AS excluded", sorted(bills)):
        found[row["key"], int(row["number"])] = frozenset(map(int, row["excluded"]))
    return found


def _of_bills(clickhouse: ClickHouse, fact: str, what: str, bills: Collection[tuple[str, int]]) -> list[dict[str, Any]]:
    if not bills:
        return []
    params = {"fact": fact, "tenants": [tenant for tenant, _ in bills], "numbers": [number for _, number in bills]}
    return clickhouse.rows(f"SELECT key, {what}, {_PAIRS}", params)


class PriceBooks:
    """The books as they were decided up to some positions of the store; each is read once, when it is first asked for."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._versions: dict[str, list[BookVersion]] = {}
        self._books: dict[tuple[str, int], PriceBook] = {}

    def at(self, book: str, position: int) -> PriceBook:
        """The table must have the prices up to this position before this object is made."""
        if book not in self._versions:
            rows = self._clickhouse.rows(
                """SELECT body, position FROM history WHERE topic = 'prices' AND fact = 'PriceBookPublished' AND key = {book:String}
                ORDER BY step""",
                {"book": book},
            )
            self._versions[book] = [book_version(json.loads(row["body"]), int(row["position"])) for row in rows]
        known = [version for version in self._versions[book] if version.position <= position]
        if (book, len(known)) not in self._books:
            self._books[book, len(known)] = PriceBook(known)
        return self._books[book, len(known)]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Unreadable records of a tenant's usage partition below a cut. `open` ones may be the tenant's and hold its bill back, at most `LISTED_MAX`
    are named; `mistaken` are those of them whose write-off names other bytes than lie there, so that it says nothing."""

    open: tuple[int, ...] = ()
    mistaken: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()
    """The others: written off by their bytes."""


class TooManyWrittenOff(Exception):
    """More records of a partition are written off than a bill can name."""


_ANY = "SELECT count() FROM usage WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64} AND readable = 0"
# First the few offsets, by one narrow column; then what they are now, since a tombstone may have been replaced.
_TOMBSTONES = """SELECT toInt64(kafka_offset) AS at, lower(hex(sha256)) AS hash FROM usage FINAL
        WHERE kafka_partition = {partition:Int32} AND readable = 0 AND kafka_offset IN (
            SELECT kafka_offset FROM usage WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64} AND readable = 0)"""
_GIVEN_UP = f"""SELECT at, groupUniqArray(hash) AS hashes FROM (
            SELECT JSONExtractInt(body, 'offset') AS at, JSONExtractString(body, 'sha256') AS hash FROM history
            WHERE topic = 'bills' AND fact = 'RecordWrittenOff' AND JSONExtractString(body, 'topic') = 'usage'
            AND JSONExtractInt(body, 'partition') = {{partition:Int32}}
            UNION ALL
            SELECT offset AS at, sha256 AS hash FROM ({RECORDS_OF_SETS})
            WHERE topic = 'usage' AND partition = {{partition:Int32}} AND approver != ''
        ) GROUP BY at"""
_JOINED = f"SELECT t.at AS at, w.hashes AS hashes, has(w.hashes, t.hash) AS honoured FROM ({_TOMBSTONES}) AS t LEFT JOIN ({_GIVEN_UP}) AS w ON t.at = w.at"
_MAY_BE_OWN = """at IN (SELECT kafka_offset FROM usage_held_rows FINAL
            WHERE kafka_partition = {partition:Int32} AND code = 'unreadable' AND tenant = {tenant:String})
        OR (SELECT count() FROM usage_held_rows FINAL WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64}
            AND tenant = {tenant:String} AND code = 'chain_broken' AND (freed_at < 0 OR freed_at >= {below:Int64})) > 0"""


def unreadable_below(clickhouse: ClickHouse, tenant: str, below: int) -> Unreadable:
    """By the tombstones of the table and the write-offs of the history: a write-off counts for the very bytes it names. A record may be the
    tenant's when its key says so, or when a chain of the tenant misses a record (K9, K13)."""
    params: dict[str, object] = {"tenant": tenant, "partition": usage_partition(tenant), "below": below}
    if not clickhouse.value(_ANY, params):
        return Unreadable()
    (row,) = clickhouse.rows(
        f"""SELECT arraySort(groupArrayIf({EXCLUDED_MAX + 1})(at, honoured)) AS excluded,
            arraySlice(arraySort(groupArrayIf(at, NOT honoured AND own)), 1, {LISTED_MAX}) AS open,
            arraySlice(arraySort(groupArrayIf(at, NOT honoured AND own AND notEmpty(hashes))), 1, {LISTED_MAX}) AS mistaken
        FROM (SELECT *, {_MAY_BE_OWN} AS own FROM ({_JOINED}))""",
        params,
    )
    return Unreadable(tuple(map(int, row["open"])), tuple(map(int, row["mistaken"])), tuple(map(int, row["excluded"])))


def unreadable_of(clickhouse: ClickHouse, below: Mapping[str, int]) -> dict[str, Unreadable]:
    """As `unreadable_below`, of tenants of one partition, each below its own offset. Only those that may have an open one are asked about alone."""
    (partition,) = {usage_partition(tenant) for tenant in below}
    params: dict[str, object] = {"partition": partition, "below": max(below.values()), "tenants": sorted(below)}
    if not clickhouse.value(_ANY, params):
        return dict.fromkeys(below, Unreadable())
    (row,) = clickhouse.rows(
        f"""SELECT arraySlice(arraySort(groupArrayIf(at, honoured)), 1, {EXCLUDED_MAX + 1}) AS excluded, countIf(NOT honoured) AS others
        FROM ({_JOINED})""",
        params,
    )
    excluded = list(map(int, row["excluded"]))
    concerned = """SELECT DISTINCT tenant FROM usage_held_rows
        WHERE kafka_partition = {partition:Int32} AND code IN ('unreadable', 'chain_broken') AND tenant IN {tenants:Array(String)}"""
    alone = {str(r["tenant"]) for r in clickhouse.rows(concerned, params)} if row["others"] else set[str]()
    return {
        tenant: unreadable_below(clickhouse, tenant, end) if tenant in alone else Unreadable(excluded=tuple(o for o in excluded if o < end))
        for tenant, end in below.items()
    }
