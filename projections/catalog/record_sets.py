"""The records of every set that somebody asked to write off, one row each, as SQL: for the dead letters and for the bills over them (K9)."""

from __future__ import annotations

RECORDS_OF_SETS = """
SELECT asked.record_set AS record_set, asked.topic AS topic, asked.record.1 AS partition, asked.record.2 AS offset, asked.record.3 AS sha256,
    asked.requested_by AS requested_by, asked.because AS because, approved.approver AS approver
FROM (
    SELECT h.key AS record_set, JSONExtractString(h.body, 'topic') AS topic, JSONExtractString(h.body, 'requested_by') AS requested_by,
        JSONExtractString(h.body, 'reason') AS because,
        arrayJoin(JSONExtract(h.body, 'records', 'Array(Tuple(partition Int32, offset Int64, sha256 String))')) AS record
    FROM history AS h WHERE h.topic = 'bills' AND h.fact = 'RecordSetDecisionRequested'
        AND JSONExtractString(h.body, 'decision') = 'write_off'
) AS asked
LEFT JOIN (
    SELECT key AS record_set, JSONExtractString(body, 'approver') AS approver FROM history
    WHERE topic = 'bills' AND fact = 'RecordSetDecided' AND JSONExtractString(body, 'decision') = 'write_off'
) AS approved ON asked.record_set = approved.record_set
"""
"""`approver` is empty while nobody approved the set; `sha256` is in hex."""
