"""Notes beside usage that is held what two people decided about it: in a table of its own, whose rows a tenant may read (K13).

The decision is in the history, where only the market's own processes see it: a set may name records of several tenants.
"""

from __future__ import annotations

from projections.ingest.clickhouse import ClickHouse

ROWS_MAX = 20_000
_MISSING = f"""
SELECT h.kafka_partition AS kafka_partition, h.kafka_offset AS kafka_offset, h.tenant AS tenant, d.decision AS decision,
    d.position AS position, d.record_set AS record_set
FROM (SELECT kafka_partition, kafka_offset, tenant, sha256 FROM usage_held_rows FINAL) AS h
JOIN (
    SELECT decided.record_set AS record_set, decided.decision AS decision, decided.position AS position, asked.record.1 AS kafka_partition,
        asked.record.2 AS kafka_offset, asked.record.3 AS sha256
    FROM (
        SELECT key AS record_set, JSONExtractString(body, 'decision') AS decision, position FROM history
        WHERE topic = 'bills' AND fact = 'RecordSetDecided' AND JSONExtractString(body, 'topic') = 'usage' AND decision IN ('count', 'dismiss')
    ) AS decided
    JOIN (
        SELECT key AS record_set, arrayJoin(JSONExtract(body, 'records',
            'Array(Tuple(partition Int32, offset Int64, sha256 String))')) AS record
        FROM history WHERE topic = 'bills' AND fact = 'RecordSetDecisionRequested' AND JSONExtractString(body, 'decision') IN ('count', 'dismiss')
    ) AS asked ON asked.record_set = decided.record_set
) AS d ON d.kafka_partition = h.kafka_partition AND d.kafka_offset = h.kafka_offset AND d.sha256 = h.sha256
WHERE (h.kafka_partition, h.kafka_offset, d.position) NOT IN (SELECT kafka_partition, kafka_offset, position FROM usage_decided_rows)
ORDER BY kafka_partition, kafka_offset, position LIMIT {ROWS_MAX}
"""
"""A decision is about the very bytes that it names."""


_KNOWN = """
SELECT (SELECT uniqExact(kafka_partition, kafka_offset) FROM history_rows WHERE topic = 'bills' AND fact = 'RecordSetDecided') AS decided,
    (SELECT uniqExact(kafka_partition, kafka_offset) FROM usage_held_rows) AS held
"""
"""Both only grow."""


class HeldDecisions:
    """Any number of processes may note them: they write the same rows."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._known: dict[str, object] = {}

    def note(self) -> set[tuple[str, int]]:
        """Writes a row for each decision that the history has about a record that is held; (tenant, partition) of those that were new."""
        (known,) = self._clickhouse.rows(_KNOWN)
        new = set[tuple[str, int]]()
        while known != self._known:
            rows = self._clickhouse.rows(_MISSING)
            if rows:
                self._clickhouse.insert_rows("usage_decided_rows", rows)
            new |= {(str(row["tenant"]), int(row["kafka_partition"])) for row in rows}
            if len(rows) < ROWS_MAX:
                self._known = known
        return new
