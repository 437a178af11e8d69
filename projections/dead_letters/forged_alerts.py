"""The alert about records that another program wrote: raised with their dead letters, resolved when two people have decided on them.

What another program wrote stays on the log for ever. The alert is over when each dead letter of its partition with such a code is written
off (or could be read after all): then somebody looked at it, and said so.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence

from events.facts.alerts import AlertRaised, AlertResolved
from events.facts.headers import headers_of
from events.facts.topics import TOPICS
from events.log.chain import NOT_SENT
from events.log.client import LogUnavailable, Reader, Writer
from events.log.record import Coordinate
from events.log.recorded_schemas import FORGED
from events.process.clock import now_us
from events.schema.codec import Codec
from projections.dead_letters.queries import OPEN, DeadLetterFilter, State, find_dead_letters
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable
from projections.ingest.sink import DeadLetter
from projections.ingest.table_offsets import DenseEnds

logger = logging.getLogger(__name__)
RULE = "forged_record"
ALARMED = FORGED | {NOT_SENT}
"""Codes of dead letters that no program of ours causes."""
NAMED_MAX = 10
"""Forged records that one alert names."""
ROUND_S = 30.0
ACKNOWLEDGED_S_MAX = 30.0
_DECIDED: tuple[State, ...] = ("written_off", "redriven")
_NAMESPACE = uuid.UUID("5f0c1c9e-2f0c-4c1c-9d7e-1f6f2a3b4c5d")
_OPEN_ALERTS = """
SELECT subject, message, producer, event_id FROM alerts WHERE rule = {rule:String} AND subject IN {subjects:Array(String)} ORDER BY subject
"""


def forged_alert(dead_letters: Sequence[DeadLetter], reader: str) -> AlertRaised | None:
    """One alert for all of a chunk: thousands of forged records must not cause as many alerts. `reader`: the projection that met them."""
    forged = [d for d in dead_letters if d.code in ALARMED]
    if not forged:
        return None
    first = forged[0].record
    at = Coordinate(first.topic, first.partition, first.offset)
    named = "; ".join(f"{d.record.topic}/{d.record.partition}/{d.record.offset}: {d.code}" for d in forged[:NAMED_MAX])
    more = f" and {len(forged) - NAMED_MAX} more" if len(forged) > NAMED_MAX else ""
    return AlertRaised(
        event_id=_raised_id(str(at), reader),
        occurred_at=now_us(),
        producer=reader,
        subject=f"{at.topic}/{at.partition}",
        rule=RULE,
        severity="critical",
        message=f"{named}{more}: {forged[0].reason}",
        remedy=f"nothing was taken from it; find out who can write to {at.topic}: `modelmarket dead-letters show {at}`; then write it off, "
        "which ends this alert",
    )


class ForgedAlerts:
    """Resolves them. Any number of processes may: each resolution has one event_id, so that a second one is a copy."""

    def __init__(self, clickhouse: ClickHouse, reader: Reader, codec: Codec, writer: Writer) -> None:
        self._clickhouse, self._reader, self._codec, self._writer = clickhouse, reader, codec, writer
        self._ends = DenseEnds(clickhouse, "dead_letters_rows")

    def resolve(self) -> int:
        """One round: how many are over. Raises ClickHouseError, ClickHouseUnavailable, LogUnavailable and TimeoutError."""
        subjects = [f"{topic.name}/{partition}" for topic in TOPICS.values() for partition in range(topic.partitions)]
        over = 0
        for row in self._clickhouse.rows(_OPEN_ALERTS, {"rule": RULE, "subjects": subjects}):
            subject, raised, producer = str(row["subject"]), str(row["event_id"]), str(row["producer"])
            named = str(row["message"]).partition(":")[0]
            if raised == _raised_id(named, producer) and self._is_over(subject, named):
                event_id = str(uuid.uuid5(_NAMESPACE, f"{raised}#resolved"))
                fact = AlertResolved(event_id=event_id, occurred_at=now_us(), producer=producer, subject=subject, rule=RULE, raised=raised)
                self._writer.append("alerts", subject.encode(), self._codec.encode(fact), headers_of(fact)).result(ACKNOWLEDGED_S_MAX)
                over += 1
        return over

    def _is_over(self, subject: str, named: str) -> bool:
        """That nothing is open says nothing while the tables have not met the record yet: the one that the alert names must be decided."""
        if not find_dead_letters(self._clickhouse, _DECIDED, named, limit=1):
            return False
        topic, _, partition = subject.rpartition("/")
        end = self._reader.end_offsets("dead-letters")["dead-letters", 0]
        return self._ends.end(0) >= end and not any(
            find_dead_letters(self._clickhouse, OPEN, where=DeadLetterFilter(topic, int(partition), code), limit=1) for code in ALARMED
        )

    def start(self) -> None:
        """Rounds in a thread of their own, until the process ends."""
        threading.Thread(target=self._rounds, name="forged-alerts", daemon=True).start()

    def _rounds(self) -> None:
        pause = threading.Event()
        while not pause.wait(ROUND_S):
            try:
                self.resolve()
            except (ClickHouseError, ClickHouseUnavailable, LogUnavailable, TimeoutError) as e:
                logger.warning("alerts of forged records are not resolved now: %s", e)


def _raised_id(named: str, reader: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{named}@{reader}#{RULE}"))
