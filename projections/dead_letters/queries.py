"""Dead letters as people work on them: which are open, which are written off, which could be read later.

What became of one is never written beside it: it follows from the tables. It counts only when the table of its topic met those very
bytes there: anybody may write to `dead-letters`. It is open while its tombstone is there and no write-off names its bytes; of other topics
than `usage` nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from events.log.record import Coordinate
from projections.ingest.clickhouse import ClickHouse

State = Literal["open", "requested", "written_off", "redriven"]
STATES: tuple[State, ...] = get_args(State)
OPEN: tuple[State, ...] = ("open", "requested")
TRIED: tuple[State, ...] = (*OPEN, "written_off")
"""Those that may be readable by now. A written-off one that can be read is counted all the same, and holds bills back until it is read again (K9)."""
DEAD_LETTERS_MAX = 1000
FIRST = Coordinate("", -1, -1)
"""Before every coordinate."""
_BOUNDS = {"max_execution_time": 20}

_SQL = """
SELECT d.topic AS topic, d.partition AS partition, d.offset AS offset, d.code AS code, d.reason AS reason, d.sha256 AS sha256,
    d.bytes AS bytes, d.first_us AS first_us, w.requested_by AS requested_by, w.approver AS approver, w.because AS because,
    w.there = 1 AND w.decided = 'written_off' AND NOT has(w.given_up, d.sha256) AS mistaken,
    multiIf(met.readable = 1, 'redriven', has(w.given_up, d.sha256), 'written_off',
        w.decided = 'requested' AND w.asked = d.sha256, 'requested', 'open') AS state
FROM (
    SELECT topic, partition, offset, lower(toString(value_sha256)) AS sha256, any(code) AS code, any(reason) AS reason,
        any(value_bytes) AS bytes, min(first_us) AS first_us
    FROM dead_letters GROUP BY topic, partition, offset, sha256
) AS d
JOIN (
    SELECT 'usage' AS topic, kafka_partition, toInt64(kafka_offset) AS at, readable, lower(hex(sha256)) AS met_sha256 FROM usage FINAL
    WHERE (kafka_partition, kafka_offset) IN (SELECT partition, toUInt64(offset) FROM dead_letters WHERE topic = 'usage')
    UNION ALL
    SELECT topic, kafka_partition, kafka_offset, toUInt8(kind != 'dead'), lower(toString(sha256)) FROM history_rows FINAL
    WHERE (topic, kafka_partition, kafka_offset) IN (SELECT topic, partition, offset FROM dead_letters)
) AS met ON met.topic = d.topic AND met.kafka_partition = d.partition AND met.at = d.offset AND met.met_sha256 = d.sha256
LEFT JOIN (
    SELECT key, 1 AS there, JSONExtractString(state, 'state') AS decided, JSONExtractString(state, 'sha256') AS asked,
        JSONExtractString(state, 'requested_by') AS requested_by, JSONExtractString(state, 'approver') AS approver,
        JSONExtractString(state, 'reason') AS because, JSONExtract(state, 'written_off', 'Array(String)') AS given_up
    FROM documents WHERE topic = 'bills' AND JSONExtractString(state, 'record') != ''
) AS w ON w.key = concat(d.topic, '/', toString(d.partition), '/', toString(d.offset))
WHERE state IN {states:Array(String)} AND ({record:String} = '' OR concat(d.topic, '/', toString(d.partition), '/', toString(d.offset)) = {record:String})
    AND (d.topic, d.partition, d.offset) > ({topic:String}, {partition:Int32}, {offset:Int64})
ORDER BY topic, partition, offset LIMIT {limit:Int32}
"""


@dataclass(frozen=True, slots=True)
class DeadLetterStatus:
    """A record that a projection could not read. `because` is the reason of the write-off, asked for or approved; `mistaken`: one was
    approved for other bytes than lie there, and says nothing."""

    at: Coordinate
    state: State
    code: str
    reason: str
    sha256: str
    bytes: int
    first_us: int
    requested_by: str
    approver: str
    because: str
    mistaken: bool

    def to_json(self) -> dict[str, Any]:
        words = ("state", "code", "reason", "sha256", "bytes", "first_us", "requested_by", "approver", "because", "mistaken")
        return {"record": str(self.at), **{name: getattr(self, name) for name in words}}


def find_dead_letters(
    clickhouse: ClickHouse, states: tuple[State, ...] = OPEN, record: str = "", limit: int = DEAD_LETTERS_MAX, after: Coordinate = FIRST
) -> list[DeadLetterStatus]:
    """Those in one of the states, in the order of their coordinates, from the one after `after`; only that of `record` when it is given."""
    place = {"topic": after.topic, "partition": after.partition, "offset": after.offset}
    rows = clickhouse.rows(_SQL, {"states": list(states), "record": record, "limit": min(limit, DEAD_LETTERS_MAX), **place}, _BOUNDS)
    return [
        DeadLetterStatus(
            Coordinate(str(r["topic"]), int(r["partition"]), int(r["offset"])),
            r["state"],
            str(r["code"]),
            str(r["reason"]),
            str(r["sha256"]),
            int(r["bytes"]),
            int(r["first_us"]),
            str(r["requested_by"]),
            str(r["approver"]),
            str(r["because"]),
            bool(r["mistaken"]),
        )
        for r in rows
    ]


def all_dead_letters(clickhouse: ClickHouse, topic: str = "", states: tuple[State, ...] = OPEN) -> Iterator[DeadLetterStatus]:
    """All of a topic, or of every topic, in one of the states, however many: those that stay as they are do not hide the ones behind them."""
    at = Coordinate(topic, -1, -1)
    while page := find_dead_letters(clickhouse, states, after=at):
        for dead_letter in page:
            if topic and dead_letter.at.topic != topic:
                return
            yield dead_letter
        at = page[-1].at
