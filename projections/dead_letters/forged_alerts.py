"""The alert about records that another program wrote: raised with their dead letters, resolved when two people have decided on them.

What another program wrote stays on the log for ever. The alert is over when each dead letter of its partition with such a code is written
off (or could be read after all): then somebody looked at it, and said so.
"""

from __future__ import annotations

from collections.abc import Sequence

from events.facts.alerts import AlertRaised
from events.log.chain import NOT_SENT
from events.log.client import Reader, Writer
from events.log.record import Coordinate
from events.log.recorded_schemas import FORGED
from events.schema.codec import Codec
from projections.catalog.record_alerts import RecordAlerts, record_alert
from projections.catalog.rows import MISPLACED, NO_PLACE
from projections.dead_letters.queries import OPEN, DeadLetterFilter, State, find_dead_letters
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import DeadLetter
from projections.ingest.table_offsets import DenseEnds

RULE = "forged_record"
ALARMED = FORGED | {NOT_SENT, MISPLACED, NO_PLACE}
"""Codes of dead letters that no program of ours causes."""
NAMED_MAX = 10
"""Forged records that one alert names."""
_DECIDED: tuple[State, ...] = ("written_off", "redriven")


def forged_alert(dead_letters: Sequence[DeadLetter], reader: str) -> AlertRaised | None:
    """One alert for all of a chunk: thousands of forged records must not cause as many alerts. `reader`: the projection that met them."""
    forged = [d for d in dead_letters if d.code in ALARMED]
    if not forged:
        return None
    first = forged[0].record
    at = Coordinate(first.topic, first.partition, first.offset)
    named = "; ".join(f"{d.record.topic}/{d.record.partition}/{d.record.offset}: {d.code}" for d in forged[:NAMED_MAX])
    more = f" and {len(forged) - NAMED_MAX} more" if len(forged) > NAMED_MAX else ""
    remedy = f"nothing was taken from it; find out who can write to {at.topic}: `modelmarket dead-letters show {at}`; then write it off, "
    return record_alert(at, RULE, f"{named}{more}: {forged[0].reason}", f"{remedy}which ends this alert", reader)


class ForgedAlerts:
    """Resolves them. Any number of processes may: each resolution has one event_id, so that a second one is a copy."""

    def __init__(self, clickhouse: ClickHouse, reader: Reader, codec: Codec, writer: Writer) -> None:
        self._clickhouse, self._reader, self._alerts = clickhouse, reader, RecordAlerts(clickhouse, codec, writer)
        self._ends = DenseEnds(clickhouse, "dead_letters_rows")

    def resolve(self) -> int:
        """One round, as `RecordAlerts.resolve`."""
        return self._alerts.resolve(RULE, self._is_over)

    def _is_over(self, subject: str, named: str) -> bool:
        """That nothing is open says nothing while the tables have not met the record yet: the one that the alert names must be decided."""
        if not find_dead_letters(self._clickhouse, _DECIDED, named, limit=1):
            return False
        topic, _, partition = subject.rpartition("/")
        end = self._reader.end_offsets("dead-letters")["dead-letters", 0]
        return self._ends.end(0) >= end and not any(
            find_dead_letters(self._clickhouse, OPEN, where=DeadLetterFilter(topic, int(partition), code), limit=1) for code in ALARMED
        )
