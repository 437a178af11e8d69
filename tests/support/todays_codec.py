"""For tests without a log: a codec of today's schemas, keys of set-up, relay and market, and a writer that keeps what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from events.alerts.alerts import Alerts
from events.alerts.fact_publisher import FactPublisher
from events.facts.alerts import AlertRaised, AlertResolved
from events.log.chain import FIRST, ChainPosition
from events.log.heartbeat import Heartbeat
from events.log.record import Record
from events.process.settings import Settings
from events.process.signing_keys import PublicKeys, SigningKey
from events.schema.codec import Codec, Schema, SchemaSet, todays_schemas

SETUP_KEY, RELAY_KEY, MARKET_KEY = (SigningKey(bytes(range(first, first + 32))) for first in (0, 32, 64))
SETUP_KEYS, RELAY_KEYS, MARKET_KEYS = (PublicKeys([key.public]) for key in (SETUP_KEY, RELAY_KEY, MARKET_KEY))
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
    """Takes the place of a `Writer` and keeps the records."""

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


def settings_with_keys(**more: Any) -> Settings:
    """Settings that contain the public keys."""
    public = {"setup_public_keys": SETUP_KEY, "relay_public_keys": RELAY_KEY, "market_public_keys": MARKET_KEY}
    return Settings(**{name: key.public.hex() for name, key in public.items()}, **more)


def heartbeat_record(heartbeat: Heartbeat, offset: int = 0, key: SigningKey = RELAY_KEY) -> Record:
    return Record("heartbeats", 0, offset, 1, heartbeat.key, heartbeat.to_json(), heartbeat.signed_headers(key))


class RelayedLog:
    """Makes records as the relay sends them: chained per partition, and signed unless a test says otherwise."""

    def __init__(self, store: str = "s", key: SigningKey = RELAY_KEY) -> None:
        self.store, self._key = store, key
        self.heads: dict[tuple[str, int], tuple[int, bytes]] = {}
        """Position and hash of the last record of each partition."""

    def record(
        self,
        tp: tuple[str, int],
        offset: int,
        position: int,
        value: bytes | None,
        *,
        key: bytes = b"k",
        previous: bytes | None = None,
        signed: bool = True,
        timestamp: int = 0,
        headers: Mapping[str, bytes] | None = None,
    ) -> Record:
        """The next record of the partition; with `previous` another one, that this log does not remember."""
        at = ChainPosition(self.store, position, self.heads.get(tp, (0, FIRST))[1] if previous is None else previous)
        sha256 = at.sha256(key, value)
        if previous is None:
            self.heads[tp] = position, sha256
        proof = at.signed_headers(self._key, *tp, sha256) if signed else at.headers
        return Record(*tp, offset, timestamp, key, value, proof | dict(headers or {}))
