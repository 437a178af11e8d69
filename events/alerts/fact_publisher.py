"""Appends the facts of one producer to the log, and waits for nothing."""

from __future__ import annotations

from events.facts.fact import Fact
from events.facts.headers import headers_of
from events.log.client import Writer
from events.schema.codec import Codec


class FactPublisher:
    """Of one producer. Nobody waits for the acknowledgement: what is lost is found out and published again by a later round."""

    def __init__(self, writer: Writer, codec: Codec) -> None:
        self._writer, self._codec = writer, codec

    def publish(self, topic: str, key: str, fact: Fact) -> None:
        self._writer.append(topic, key.encode(), self._codec.encode(fact), headers_of(fact))
