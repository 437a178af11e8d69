"""The tables of usage that is held: read, and not billed, since no chain of an opened epoch leads to it or the key was not its tenant's (K13).

Only exceptions have a row. How far each partition is verified says below which offset no row is still to come. Two people can decide to count
held usage or to dismiss it (`RecordSetDecided`); `held_decisions` notes what they decided beside it.
"""

from __future__ import annotations

from typing import Literal

HeldCode = Literal["epoch_unknown", "wrong_key", "not_signed", "chain_broken", "sequence_taken", "key_unknown"]
"""Why usage is held. Rows with `unreadable` are dead letters: they have one, so that the chain goes on when one can be read later."""

HELD = """
CREATE TABLE IF NOT EXISTS usage_held_rows (
    kafka_partition Int32,
    kafka_offset Int64,
    kafka_time_us Int64 COMMENT 'When the broker appended it, microseconds since 1970 UTC',
    tenant String,
    epoch String,
    sequence Int64,
    previous_sha256 String COMMENT 'In hex',
    sha256 String COMMENT 'Of the framed record, in hex',
    code LowCardinality(String) COMMENT 'epoch_unknown, wrong_key, not_signed, chain_broken, sequence_taken, key_unknown, unreadable',
    own_key Bool COMMENT 'Whether its key was that of its tenant when the call began',
    freed_at Int64 DEFAULT -1 COMMENT 'Offset of the record that filled the gap before it; -1: it is held'
) ENGINE = ReplacingMergeTree(freed_at) ORDER BY (kafka_partition, kafka_offset)
COMMENT 'Usage records that were held, each offset once; read usage_held'
"""

VERIFIED = """
CREATE TABLE IF NOT EXISTS usage_verified (
    kafka_partition Int32,
    kafka_offset Int64 COMMENT 'Every record below it is verified'
) ENGINE = ReplacingMergeTree(kafka_offset) ORDER BY kafka_partition
"""

DECIDED = """
CREATE TABLE IF NOT EXISTS usage_decided_rows (
    kafka_partition Int32,
    kafka_offset Int64,
    tenant String,
    decision LowCardinality(String) COMMENT 'count: billed from this position on; dismiss: never billed',
    position Int64 COMMENT 'Of the decision in the store',
    record_set String COMMENT 'Which names it'
) ENGINE = ReplacingMergeTree ORDER BY (kafka_partition, kafka_offset, position)
COMMENT 'What two people decided about usage that is held; read usage_held_all'
"""

HELD_BELOW = """
SELECT h.kafka_offset AS held_at, true AS is_there, h.freed_at AS freed_at, if(d.decided, d.position, 9223372036854775807) AS counted_from
FROM (
    SELECT kafka_offset, freed_at FROM usage_held_rows FINAL WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64}
) AS h
LEFT JOIN (
    SELECT kafka_offset, true AS decided, min(usage_decided_rows.position) AS position FROM usage_decided_rows
    WHERE kafka_partition = {partition:Int32} AND decision = 'count' GROUP BY kafka_offset
) AS d ON d.kafka_offset = h.kafka_offset
"""
"""What was ever held of a partition: for a bill that knows the record at `freed_at` it counts, and so it does for one that pins the position
`counted_from` or a later one, at which people decided to count it."""

HELD_ALL = """
CREATE OR REPLACE VIEW usage_held_all AS
SELECT h.kafka_partition AS kafka_partition, h.kafka_offset AS kafka_offset, fromUnixTimestamp64Micro(h.kafka_time_us, 'UTC') AS appended,
    h.tenant AS tenant, h.epoch AS epoch, h.sequence AS sequence, h.sha256 AS sha256, h.code AS code, d.decision AS decision
FROM (SELECT * FROM usage_held_rows FINAL WHERE freed_at < 0 AND code != 'unreadable') AS h
LEFT JOIN (
    SELECT kafka_partition, kafka_offset, if(countIf(decision = 'count') > 0, 'count', 'dismiss') AS decision FROM usage_decided_rows
    GROUP BY kafka_partition, kafka_offset
) AS d ON d.kafka_partition = h.kafka_partition AND d.kafka_offset = h.kafka_offset
COMMENT 'Usage that nothing proves; decision: count (billed all the same), dismiss (never billed), empty while nobody decided'
"""

HELD_NOW = """
CREATE OR REPLACE VIEW usage_held AS
SELECT * EXCEPT (decision) FROM usage_held_all WHERE decision = ''
COMMENT 'Usage that is not billed, since nothing proves that a gateway wrote it for a key of its tenant, or a record before it is missing'
"""

STATEMENTS = (HELD, VERIFIED, DECIDED, HELD_ALL, HELD_NOW)
