"""Alerts of workers about one record: any worker may raise one and any may resolve it, since both ids follow from the record.

A partition moves from worker to worker, and a worker may be killed at any time: what is over is found in the tables, not remembered.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable

from events.facts.alerts import AlertRaised, AlertResolved
from events.facts.headers import headers_of
from events.facts.topics import DECIDED_TOPICS, TOPICS
from events.log.client import LogBroken, LogUnavailable, Writer
from events.log.record import Coordinate
from events.process.clock import now_us
from events.schema.codec import Codec
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable

logger = logging.getLogger(__name__)
ROUND_S = 30.0
ACKNOWLEDGED_S_MAX = 30.0
PRODUCER = "projections"
STALLED = f"{PRODUCER}.stalled"
AWAY = (ClickHouseError, ClickHouseUnavailable, LogUnavailable, LogBroken, TimeoutError)
"""What may be missing in a round: the next one tries again."""
_NAMESPACE = uuid.UUID("5f0c1c9e-2f0c-4c1c-9d7e-1f6f2a3b4c5d")
_OPEN_ALERTS = """
SELECT subject, message, producer, event_id FROM alerts WHERE rule = {rule:String} AND subject IN {subjects:Array(String)} ORDER BY subject
"""
_HAS_ROW = """
SELECT count() FROM history_rows
WHERE topic = {topic:String} AND kafka_partition = {partition:Int32} AND kafka_offset = {offset:Int64}
"""


def record_alert(at: Coordinate, rule: str, message: str, remedy: str, producer: str = PRODUCER) -> AlertRaised:
    """`message` begins with the record and a colon: the resolution finds it there."""
    assert message.startswith(f"{at}:")
    return AlertRaised(
        event_id=_raised_id(str(at), producer, rule),
        occurred_at=now_us(),
        producer=producer,
        subject=f"{at.topic}/{at.partition}",
        rule=rule,
        severity="critical",
        message=message,
        remedy=remedy,
    )


class RecordAlerts:
    """Raises and resolves them. Threads share one."""

    def __init__(self, clickhouse: ClickHouse, codec: Codec, writer: Writer) -> None:
        self._clickhouse, self._codec, self._writer = clickhouse, codec, writer

    def publish(self, alert: AlertRaised | AlertResolved) -> None:
        """Returns when Kafka has it; raises LogUnavailable, LogBroken and TimeoutError."""
        headers = headers_of(alert)
        self._writer.append("alerts", alert.subject.encode(), self._codec.encode(alert), headers).result(ACKNOWLEDGED_S_MAX)

    def resolve(self, rule: str, is_over: Callable[[str, str], bool]) -> int:
        """One round over the open alerts of a rule: how many are over, by `is_over(subject, record)`. Raises what is in `AWAY`."""
        subjects = [f"{topic.name}/{partition}" for topic in TOPICS.values() for partition in range(topic.partitions)]
        over = 0
        for row in self._clickhouse.rows(_OPEN_ALERTS, {"rule": rule, "subjects": subjects}):
            subject, raised, producer = str(row["subject"]), str(row["event_id"]), str(row["producer"])
            named = str(row["message"]).partition(":")[0]
            if raised == _raised_id(named, producer, rule) and is_over(subject, named):
                event_id = str(uuid.uuid5(_NAMESPACE, f"{raised}#resolved"))
                self.publish(
                    AlertResolved(event_id=event_id, occurred_at=now_us(), producer=producer, subject=subject, rule=rule, raised=raised)
                )
                over += 1
        return over


class StallAlerts:
    """The alert about a partition of decisions that does not go on (K4): raised when nothing proved a record for 30 s, resolved when the record
    has its row, as a decision, a copy or a dead letter. The same record that stalls again, after a restart, is the same alert."""

    def __init__(self, clickhouse: ClickHouse, alerts: RecordAlerts) -> None:
        self._clickhouse, self._alerts = clickhouse, alerts

    def raise_(self, at: Coordinate, message: str) -> None:
        """Raises what is in `AWAY`. Nothing is raised when another worker, which has the partition by now, met the proof."""
        if self._has_row(at):
            return
        remedy = f"see that the relay runs: it sends the rest of its batch, signed; where it does, see who can write to {at.topic}"
        self._alerts.publish(record_alert(at, STALLED, message, f"{remedy}; docs/operations.md, 'A record that claims a place'"))

    def resolve(self) -> int:
        """One round, as `RecordAlerts.resolve`."""
        return self._alerts.resolve(STALLED, lambda _, named: self._is_over(named))

    def _is_over(self, named: str) -> bool:
        topic, _, rest = named.partition("/")
        partition, _, offset = rest.partition("/")
        return topic in DECIDED_TOPICS and self._has_row(Coordinate(topic, int(partition), int(offset)))

    def _has_row(self, at: Coordinate) -> bool:
        return bool(self._clickhouse.value(_HAS_ROW, {"topic": at.topic, "partition": at.partition, "offset": at.offset}))


def start_rounds(*rounds: Callable[[], int]) -> None:
    """Each of them twice a minute, in a thread of their own, until the process ends."""

    def run() -> None:
        pause = threading.Event()
        while not pause.wait(ROUND_S):
            for resolve in rounds:
                try:
                    resolve()
                except AWAY as e:
                    logger.warning("alerts about records are not resolved now: %s", e)

    threading.Thread(target=run, name="record-alerts", daemon=True).start()


def _raised_id(named: str, producer: str, rule: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{named}@{producer}#{rule}"))
