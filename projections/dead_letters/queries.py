"""Dead letters as people work on them: which are open, which are written off, which could be read later.

What became of one is never written beside it: it follows from the tables. It counts only when the table of its topic met those very
bytes there: anybody may write to `dead-letters`. It is open while its tombstone is there and no write-off names its bytes; of other topics
than `usage` nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from events.facts.fact import INT64_MAX
from events.log.record import Coordinate
from projections.catalog.record_sets import RECORDS_OF_SETS
from projections.ingest.clickhouse import ClickHouse

State = Literal["open", "requested", "written_off", "redriven"]
STATES: tuple[State, ...] = get_args(State)
OPEN: tuple[State, ...] = ("open", "requested")
TRIED: tuple[State, ...] = (*OPEN, "written_off")
"""Those that may be readable by now. A written-off one that can be read is counted all the same, and holds bills back until it is read again (K9)."""
DEAD_LETTERS_MAX = 1000
FIRST = Coordinate("", -1, -1)
"""Before every coordinate."""
END = Coordinate("~", 0, 0)
"""Behind every one: a topic is named in letters."""
_BOUNDS = {"max_execution_time": 20}

# Written more than once (K8) a row says the same: no FINAL. Every condition holds for some row of each coordinate that is wanted.
_LISTED = """
SELECT topic, partition, offset FROM dead_letters_rows
WHERE event_id != '' AND (topic, partition, offset) > ({after_topic:String}, {after_partition:Int32}, {after_offset:Int64})
    AND (topic, partition, offset) <= ({last_topic:String}, {last_partition:Int32}, {last_offset:Int64})
    AND ({record:String} = '' OR concat(topic, '/', toString(partition), '/', toString(offset)) = {record:String})
    AND ({topic:String} = '' OR topic = {topic:String}) AND ({partition:Int32} < 0 OR partition = {partition:Int32})
    AND offset BETWEEN {from_offset:Int64} AND {to_offset:Int64}
    AND ({code:String} = '' OR code = {code:String}) AND ({key:String} = '' OR key = {key:String})
    AND kafka_time_us >= {since_us:Int64} AND kafka_time_us < {until_us:Int64}
"""
_LAST = f"""
SELECT count() AS n, max((topic, partition, offset)) AS last
FROM (SELECT DISTINCT topic, partition, offset FROM ({_LISTED}) ORDER BY topic, partition, offset LIMIT {{window:Int32}})
"""
_SQL = f"""
WITH listed AS ({_LISTED})
SELECT d.topic AS topic, d.partition AS partition, d.offset AS offset, d.code AS code, d.reason AS reason, d.sha256 AS sha256,
    d.bytes AS bytes, d.first_us AS first_us, d.key AS key,
    has(w.given_up, d.sha256) AS alone_written_off, w.decided = 'requested' AND w.asked = d.sha256 AS alone_asked,
    NOT alone_written_off AND (s.approved = 1 OR NOT alone_asked) AS by_set,
    if(by_set, s.record_set, '') AS record_set, if(by_set AND s.there = 1, s.requested_by, w.requested_by) AS requested_by,
    if(by_set AND s.there = 1, s.approver, w.approver) AS approver, if(by_set AND s.there = 1, s.because, w.because) AS because,
    w.there = 1 AND w.decided = 'written_off' AND NOT alone_written_off AND s.there = 0 AS mistaken,
    multiIf(met.readable = 1, 'redriven', alone_written_off OR s.approved = 1, 'written_off', alone_asked OR s.there = 1, 'requested',
        'open') AS state
FROM (
    SELECT topic, partition, offset, lower(toString(value_sha256)) AS sha256, any(code) AS code, any(reason) AS reason, any(key) AS key,
        any(value_bytes) AS bytes, min(kafka_time_us) AS first_us
    FROM dead_letters_rows WHERE event_id != '' AND (topic, partition, offset) IN (SELECT topic, partition, offset FROM listed)
    GROUP BY topic, partition, offset, sha256
) AS d
JOIN (
    SELECT 'usage' AS topic, kafka_partition, toInt64(kafka_offset) AS at, readable, lower(hex(sha256)) AS met_sha256 FROM usage FINAL
    WHERE (kafka_partition, kafka_offset) IN (SELECT partition, toUInt64(offset) FROM listed WHERE topic = 'usage')
    UNION ALL
    SELECT topic, kafka_partition, kafka_offset, toUInt8(kind != 'dead'), lower(toString(sha256)) FROM history_rows FINAL
    WHERE (topic, kafka_partition, kafka_offset) IN (SELECT topic, partition, offset FROM listed WHERE topic != 'usage')
) AS met ON met.topic = d.topic AND met.kafka_partition = d.partition AND met.at = d.offset AND met.met_sha256 = d.sha256
LEFT JOIN (
    SELECT key, 1 AS there, JSONExtractString(head, 'state') AS decided, JSONExtractString(head, 'sha256') AS asked,
        JSONExtractString(head, 'requested_by') AS requested_by, JSONExtractString(head, 'approver') AS approver,
        JSONExtractString(head, 'reason') AS because, JSONExtract(head, 'written_off', 'Array(String)') AS given_up
    FROM documents WHERE topic = 'bills' AND key IN (SELECT concat(topic, '/', toString(partition), '/', toString(offset)) FROM listed)
        AND JSONExtractString(head, 'record') != ''
) AS w ON w.key = concat(d.topic, '/', toString(d.partition), '/', toString(d.offset))
LEFT JOIN (
    SELECT r.topic AS topic, r.partition AS partition, r.offset AS offset, r.sha256 AS sha256, 1 AS there, max(r.approver != '') AS approved,
        max(r.approver) AS approver, argMax(r.record_set, r.approver != '') AS record_set,
        argMax(r.requested_by, r.approver != '') AS requested_by, argMax(r.because, r.approver != '') AS because
    FROM ({RECORDS_OF_SETS}) AS r WHERE (r.topic, r.partition, r.offset) IN (SELECT topic, partition, offset FROM listed) GROUP BY topic, partition, offset, sha256
) AS s ON s.topic = d.topic AND s.partition = d.partition AND s.offset = d.offset AND s.sha256 = d.sha256
WHERE state IN {{states:Array(String)}}
    AND ({{code:String}} = '' OR d.code = {{code:String}}) AND ({{key:String}} = '' OR d.key = {{key:String}})
    AND d.first_us >= {{since_us:Int64}} AND d.first_us < {{until_us:Int64}}
    AND ({{record_set:String}} = '' OR (d.topic, d.partition, d.offset, d.sha256) IN (
        SELECT topic, partition, offset, sha256 FROM ({RECORDS_OF_SETS}) WHERE record_set = {{record_set:String}}))
ORDER BY topic, partition, offset LIMIT {{limit:Int32}}
"""
# A page looks at so many coordinates at once, and at four times as many where it finds none in the states that are asked for.
WINDOW_MIN, WINDOW_MAX = 1_000, 64_000


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters: every field that is given must hold. `key` is the record's own, on `usage` the tenant as its writer named it;
    `to_offset` is included; the instants are of when it was first met, µs UTC, `until_us` excluded; `record_set` has named it."""

    topic: str = ""
    partition: int = -1
    code: str = ""
    key: str = ""
    from_offset: int = 0
    to_offset: int = INT64_MAX
    since_us: int = 0
    until_us: int = INT64_MAX
    record_set: str = ""


EVERY = DeadLetterFilter()


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
    key: str = ""
    """Of the record, as it could be read."""
    record_set: str = ""
    """The set in which it was asked for or approved; empty when it was alone."""

    def to_json(self) -> dict[str, Any]:
        words = (
            *("state", "code", "reason", "sha256", "bytes", "first_us", "requested_by", "approver", "because", "mistaken"),
            *("key", "record_set"),
        )
        return {"record": str(self.at), **{name: getattr(self, name) for name in words}}


def find_dead_letters(
    clickhouse: ClickHouse,
    states: tuple[State, ...] = OPEN,
    record: str = "",
    *,
    limit: int = DEAD_LETTERS_MAX,
    after: Coordinate = FIRST,
    where: DeadLetterFilter = EVERY,
) -> list[DeadLetterStatus]:
    """Those in one of the states, in the order of their coordinates, from the one after `after`; only that of `record` when it is given."""
    found: list[DeadLetterStatus] = []
    wanted, window = min(limit, DEAD_LETTERS_MAX), WINDOW_MIN
    params: dict[str, object] = {"states": list(states), "record": record, **asdict(where)}
    while len(found) < wanted:
        params |= _bound("after", after) | {"window": window}
        (looked_at,) = clickhouse.rows(_LAST, params | _bound("last", END), _BOUNDS)
        topic, partition, offset = looked_at["last"]
        last = Coordinate(str(topic), int(partition), int(offset))
        if looked_at["n"]:
            more = {**_bound("last", last), "limit": wanted - len(found)}
            found += [_status(row) for row in clickhouse.rows(_SQL, params | more, _BOUNDS)]
        if looked_at["n"] < window:
            break
        after, window = last, min(4 * window, WINDOW_MAX)
    return found


def _bound(name: str, at: Coordinate) -> dict[str, object]:
    return {f"{name}_topic": at.topic, f"{name}_partition": at.partition, f"{name}_offset": at.offset}


def _status(row: Mapping[str, Any]) -> DeadLetterStatus:
    return DeadLetterStatus(
        Coordinate(str(row["topic"]), int(row["partition"]), int(row["offset"])),
        row["state"],
        str(row["code"]),
        str(row["reason"]),
        str(row["sha256"]),
        int(row["bytes"]),
        int(row["first_us"]),
        str(row["requested_by"]),
        str(row["approver"]),
        str(row["because"]),
        bool(row["mistaken"]),
        str(row["key"]),
        str(row["record_set"]),
    )


def all_dead_letters(
    clickhouse: ClickHouse, where: DeadLetterFilter = EVERY, states: tuple[State, ...] = OPEN
) -> Iterator[DeadLetterStatus]:
    """All that the filter lets through, in one of the states, however many: those that stay as they are do not hide the ones behind them."""
    at = FIRST
    while page := find_dead_letters(clickhouse, states, after=at, where=where):
        yield from page
        at = page[-1].at
