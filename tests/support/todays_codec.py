"""For tests without a log: a codec of today's schemas, and what takes the alerts that a log would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from events.alerts.alerts import Alerts
from events.alerts.fact_publisher import FactPublisher
from events.facts.alerts import AlertRaised, AlertResolved
from events.schema.codec import Codec, Schema, SchemaSet, todays_schemas

SCHEMA_ID_MIN = 100
"""No index into anything: a test that mixes them up fails."""


def todays_schema_set() -> SchemaSet:
    schemas = SchemaSet()
    for schema_id, (subject, definition) in enumerate(sorted(todays_schemas().items()), start=SCHEMA_ID_MIN):
        schemas.add(Schema.of(schema_id, subject, definition))
    return schemas


def todays_codec() -> Codec:
    return Codec(todays_schema_set())


class RecordedLog:
    """In the place of a `Writer`."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.written: list[tuple[str, str, str, str]] = []
        self.frames: list[bytes | None] = []

    def append(self, topic: str, key: bytes, value: bytes, headers: Mapping[str, bytes]) -> None:
        self.frames.append(value)
        fact = self._codec.fact(value)
        assert isinstance(fact, AlertRaised | AlertResolved)
        assert (topic, key, headers["ce_type"]) == ("alerts", fact.subject.encode(), type(fact).__name__.encode())
        self.written.append(
            (type(fact).__name__[5:], fact.subject, fact.rule, fact.raised if isinstance(fact, AlertResolved) else fact.event_id)
        )

    def alerts(self, producer: str) -> Alerts:
        writer: Any = self
        return Alerts(producer, FactPublisher(writer, self._codec))
