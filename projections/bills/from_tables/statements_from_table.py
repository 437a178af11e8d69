"""Statements of many tenants of one partition, computed together by ClickHouse: a question for all of them, not one for each.

The engine sums everything but executions that share an invocation key. The table must be dense below the cuts asked for: see `wait` of the biller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from events.facts.bills import BILL_COUNTERS, BillCounts
from events.facts.meters import METERS
from projections.ingest.clickhouse import ClickHouse
from projections.usage.held import HELD_BELOW
from rating.book import PriceBook
from rating.rules import BILLABLE_SQL, EFFECTIVE_US_SQL, VOIDED, KeyWindows, effective_us
from rating.statement import Bucket, Cutoff, Statement, rate

EXCEPTIONS_MAX = 2_000
"""So many are given to the engine with its questions, about 100 KB. More of them it looks for again in each question."""
ROWS_MAX = 200_000
"""Rows of one answer about several statements, about 100 MB. A statement by itself gets what it needs."""
SHARED_KEYS_PAGE = 50_000
"""Executions of shared invocation keys that are in memory at once. Their number has no bound: a tenant who repeats calls gets bills, too."""


class Asked(NamedTuple):
    """One statement."""

    tenant: str
    cutoff: Cutoff
    book: PriceBook


class TooManyRows(Exception):
    """An answer about several statements is larger than ROWS_MAX: ask for fewer."""


class _Exception(NamedTuple):
    """Of most tenants few: rows that do not simply count. As statement (s) and what names them there."""

    row: str
    """As an expression over a row of usage."""
    text: str
    """What the answer says for it, as an expression over `one`."""
    given: str
    """The parameter's type, and how it becomes what `row` is."""
    parsed: str
    sql: str
    """Finds them; may use those before it."""


_EXCEPTIONS = {
    # Records whose event_id came before.
    "repeated": _Exception(
        "toInt64(kafka_offset)",
        "one",
        "Int64",
        "g.2",
        "SELECT s, arrayJoin(arrayPopFront(arraySort(groupArray(toInt64(kafka_offset))))) AS one FROM below GROUP BY s, event_id HAVING count() > 1",
    ),
    # Executions that a void names.
    "taken_back": _Exception(
        "event_id", "toString(one)", "String", "toUUID(g.2)", f"SELECT s, voided AS one FROM below WHERE fact = '{VOIDED}'"
    ),
    # Keys that several executions have.
    "shared": _Exception(
        "invocation_key",
        "hex(one)",
        "String",
        "unhex(g.2)",
        "SELECT s, invocation_key AS one FROM due WHERE invocation_key != '' GROUP BY s, invocation_key HAVING count() > 1",
    ),
}
_ASKED = """SELECT a.1 AS s, a.2 AS asker, a.3 AS cut, a.4 AS until, a.5 AS bounds, a.6 AS decided_position FROM (SELECT arrayJoin(arrayZip(
            range(toUInt32({n:UInt32})), {askers:Array(String)}, {cuts:Array(Int64)}, {untils:Array(Int64)}, {bounds:Array(Array(Int64))},
            {positions:Array(Int64)})) AS a)"""
_EXCLUDED = "SELECT x.1, x.2 FROM (SELECT arrayJoin(arrayZip({excluded_s:Array(UInt32)}, {excluded:Array(Int64)})) AS x)"
_SUMS = ", ".join(f"sum(toInt64({m})) AS sum_{m}" for m in METERS)


def statements_of(clickhouse: ClickHouse, partition: int, asked: Sequence[Asked]) -> list[Statement]:
    """Of tenants of one partition, each as `StatementBuilder` would build it from the log. Raises TooManyRows."""
    questions = _Questions(clickhouse, partition, asked)
    questions.exceptions()
    counts = questions.repeats()
    epochs = questions.epochs(counts)
    usage = questions.many(counts)
    questions.few(usage, counts)
    return [
        Statement(rate({bucket: tuple(sums) for bucket, sums in used.items()}, one.book), BillCounts(**count), frozenset(wrote))
        for one, used, count, wrote in zip(asked, usage, counts, epochs, strict=True)
    ]


Usage = list[dict[Bucket, list[int]]]
Counts = list[dict[str, int]]


class _Questions:
    """About one group. `s` is the number of a statement in it."""

    def __init__(self, clickhouse: ClickHouse, partition: int, asked: Sequence[Asked]) -> None:
        self._clickhouse, self._asked = clickhouse, asked
        cuts = [one.cutoff.cuts.get(partition, 0) for one in asked]
        excluded = [(s, offset) for s, one in enumerate(asked) for offset in sorted(one.cutoff.excluded)]
        self._params: dict[str, object] = {
            "partition": partition,
            "below": max(cuts, default=0),
            "tenants": sorted({one.tenant for one in asked}),
            "n": len(asked),
            "askers": [one.tenant for one in asked],
            "cuts": cuts,
            "untils": [one.cutoff.until for one in asked],
            "bounds": [list(one.book.bounds) for one in asked],
            "positions": [one.cutoff.decided_position for one in asked],
        }
        if excluded:
            self._params |= {"excluded_s": [s for s, _ in excluded], "excluded": [offset for _, offset in excluded]}
        self._excluded = bool(excluded)
        self._held = False
        self._found: dict[str, str] = {name: exception.sql for name, exception in _EXCEPTIONS.items()}
        """Each as a subquery, of its parameters or of the tables; empty where there is none."""

    def exceptions(self) -> None:
        """Finds what does not simply count; those that are few become parameters."""
        any_held = "SELECT count() FROM usage_held_rows WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64}"
        self._held = bool(self._clickhouse.value(any_held, self._params))
        for name, exception in _EXCEPTIONS.items():
            sql = f"SELECT DISTINCT s, {exception.text} AS named FROM ({exception.sql}) LIMIT {EXCEPTIONS_MAX + 1}"
            found = self._rows(sql)
            if not found:
                self._found[name] = ""
            elif len(found) <= EXCEPTIONS_MAX:
                self._params |= {f"{name}_s": [row["s"] for row in found], name: [row["named"] for row in found]}
                arrays = f"{{{name}_s:Array(UInt32)}}, {{{name}:Array({exception.given})}}"
                self._found[name] = f"SELECT g.1, {exception.parsed} FROM (SELECT arrayJoin(arrayZip({arrays})) AS g)"

    def repeats(self) -> Counts:
        """Copies, conflicts and held: classes that ask for no order among executions."""
        counts = [dict.fromkeys(BILL_COUNTERS, 0) for _ in self._asked]
        if self._found["repeated"]:
            repeats = """SELECT s, sum(first_times - 1) AS copied, sum(times - first_times) AS conflicting FROM (
                    SELECT s, event_id, sum(n) AS times, argMin(n, at) AS first_times
                    FROM (SELECT s, event_id, sha256, count() AS n, min(kafka_offset) AS at FROM below GROUP BY s, event_id, sha256)
                    GROUP BY s, event_id HAVING times > 1
                ) GROUP BY s"""
            for row in self._rows(repeats):
                counts[row["s"]] |= {"copied": int(row["copied"]), "conflicting": int(row["conflicting"])}
        if self._held:
            for row in self._rows("SELECT s, count() AS held FROM known WHERE is_held GROUP BY s"):
                counts[row["s"]]["held"] = int(row["held"])
        return counts

    def epochs(self, counts: Counts) -> list[set[str]]:
        """The producers of what counts; and what is missing of them, unbilled and voided."""
        rows = self._bounded(
            f"""SELECT s, epoch, greatest(0, toInt64(max(sequence)) - toInt64(count())) AS missing,
                countIf(NOT billable) AS unbilled, countIf(billable AND {self._is("taken_back")}) AS voided
            FROM counted GROUP BY s, epoch"""
        )
        epochs = [set[str]() for _ in self._asked]
        for row in rows:
            for name in ("missing", "unbilled", "voided"):
                counts[row["s"]][name] += int(row[name])
            epochs[row["s"]].add(str(row["epoch"]))
        return epochs

    def many(self, counts: Counts) -> Usage:
        """Executions whose key no other execution has are billed: the engine sums them by what prices them."""
        rows = self._bounded(
            f"""SELECT s, model, model_version, provider, toInt64(arrayCount(b -> b <= effective, bounds)) AS passed,
                effective >= until AS carried, count() AS facts, countIf(effective != occurred_at) AS retimed, {_SUMS}
            FROM due WHERE NOT {self._is("shared")}
            GROUP BY s, model, model_version, provider, passed, carried"""
        )
        usage: Usage = [{} for _ in self._asked]
        for row in rows:
            count = counts[row["s"]]
            count["retimed"] += int(row["retimed"])
            if row["carried"]:
                count["carried"] += int(row["facts"])
                continue
            count["claimed"] += int(row["facts"])
            bucket = Bucket(row["model"], row["model_version"], row["provider"], int(row["passed"]))
            usage[row["s"]][bucket] = [int(row[f"sum_{m}"]) for m in METERS]
        return usage

    def few(self, usage: Usage, counts: Counts) -> None:
        """Executions that share a key: in log order, the first bills and the others within a day repeat it (K11)."""
        windows, of = KeyWindows(), -1
        for row in self._sharing():
            if row["s"] != of:
                windows, of = KeyWindows(), row["s"]
            count, one = counts[of], self._asked[of]
            effective = effective_us(int(row["occurred_at"]), int(row["append_us"]))
            if windows.repeats(row["key_hex"].encode(), effective):
                count["duplicate"] += 1
                continue
            count["retimed"] += effective != int(row["occurred_at"])
            if effective >= one.cutoff.until:
                count["carried"] += 1
                continue
            count["claimed"] += 1
            passed = sum(bound <= effective for bound in one.book.bounds)
            sums = usage[of].setdefault(Bucket(row["model"], row["model_version"], row["provider"], passed), [0] * len(METERS))
            for i, meter in enumerate(METERS):
                sums[i] += int(row[meter])

    def _sharing(self) -> Iterator[Mapping[str, Any]]:
        """By statement, and of each in the order of the log."""
        if not self._found["shared"]:
            return
        after = -1, -1
        while True:
            rows = self._rows(
                f"""SELECT s, toInt64(kafka_offset) AS at, hex(invocation_key) AS key_hex, occurred_at, kafka_time_us AS append_us,
                    model, model_version, provider, {", ".join(METERS)}
                FROM due WHERE {self._is("shared")} AND (toInt64(s), at) > ({{after_s:Int64}}, {{after:Int64}})
                ORDER BY s, at LIMIT {SHARED_KEYS_PAGE}""",
                {"after_s": after[0], "after": after[1]},
            )
            yield from rows
            if len(rows) < SHARED_KEYS_PAGE:
                return
            after = int(rows[-1]["s"]), int(rows[-1]["at"])

    def _bounded(self, sql: str) -> list[dict[str, Any]]:
        if len(self._asked) == 1:
            return self._rows(sql)
        rows = self._rows(f"{sql} LIMIT {ROWS_MAX + 1}")
        if len(rows) > ROWS_MAX:
            raise TooManyRows(f"more than {ROWS_MAX} rows of {len(self._asked)} statements")
        return rows

    def _rows(self, sql: str, params: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        return self._clickhouse.rows(f"WITH {self._tables()} {sql}", {**self._params, **(params or {})})

    def _is(self, name: str) -> str:
        """Whether a row is such an exception."""
        found = self._found[name]
        return f"((s, {_EXCEPTIONS[name].row}) IN ({found}))" if found else "0"

    def _tables(self) -> str:
        """`known`: rows of the table, once for each statement that knows them. `below`: those that are not held. `counted`: each event_id once.
        `due`: what is billed, but for repeated keys. The engine plans each again wherever its name stands: a question names one."""
        excluded = f"AND (a.s, toInt64(u.kafka_offset)) NOT IN ({_EXCLUDED})" if self._excluded else ""
        held, is_held = "", "0"
        if self._held:
            freed_unknown = f" OR (a.s, h.freed_at) IN ({_EXCLUDED})" if self._excluded else ""
            is_held = f"h.is_there AND h.counted_from > a.decided_position AND (h.freed_at < 0 OR h.freed_at >= a.cut{freed_unknown})"
            held = f"LEFT JOIN ({HELD_BELOW}) AS h ON toInt64(u.kafka_offset) = h.held_at"
        return f"""
    known AS (
        SELECT u.*, a.s AS s, a.until AS until, a.bounds AS bounds, {is_held} AS is_held
        FROM (
            SELECT * FROM usage_rows
            WHERE kafka_partition = {{partition:Int32}} AND kafka_offset < {{below:Int64}} AND tenant IN {{tenants:Array(String)}}
        ) AS u INNER JOIN ({_ASKED}) AS a ON u.tenant = a.asker {held}
        WHERE u.kafka_offset < a.cut {excluded}
    ),
    below AS (SELECT * FROM known WHERE NOT is_held),
    counted AS (SELECT *, {EFFECTIVE_US_SQL} AS effective, {BILLABLE_SQL} AS billable FROM below WHERE NOT {self._is("repeated")}),
    due AS (SELECT * FROM counted WHERE billable AND NOT {self._is("taken_back")})
"""
