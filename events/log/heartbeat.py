"""The relay's heartbeat: what a fold compares its position with, to know how fresh it is (K5).

Signed by the relay and numbered: one by another writer, or an old one written once more, is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from events.log.chain import POSITION_MAX, Chain
from events.log.client import LogMismatch, Reader
from events.log.record import LogRecord
from events.log.signature import is_signed, signed_headers
from events.process.settings import Settings
from events.process.signing_keys import KeyMissing, PublicKeys, SigningKey, public_keys

TOPIC = "heartbeats"
READ_BACK = 256
"""Records looked at for the newest ones."""
SKEW_MS_MAX = 5_000
"""Brokers' clocks differ by less: append times of two partitions are compared."""
FORGED_HEARTBEAT = "forged_heartbeat"
"""A rule of alerts, behind the name of the fold."""
FORGED_QUIET_S = 600.0
"""When so long no forged heartbeat came, that alert is over."""
FORGED_HEARTBEAT_REMEDY = (
    "find out who can write to heartbeats; or this process does not know the relay's new key: docs/operations.md, 'Signing keys'; "
    f"the alert ends {FORGED_QUIET_S / 60:.0f} minutes after the last one"
)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How far the relay is: its position, and the last position it sent to each partition. JSON on `heartbeats`; not a fact (K5)."""

    store: str
    position: int
    sent: Mapping[str, int]
    """`topic/partition` → last position sent there."""
    number: int
    """Grows from one heartbeat to the next, across restarts."""

    @property
    def key(self) -> bytes:
        return self.store.encode()

    def to_json(self) -> bytes:
        document = {"store": self.store, "position": self.position, "sent": dict(self.sent), "number": self.number}
        return json.dumps(document, separators=(",", ":")).encode()

    def signed_headers(self, relay_key: SigningKey) -> dict[str, bytes]:
        return signed_headers(relay_key, TOPIC, self.key, self.to_json())

    @classmethod
    def from_record(cls, record: LogRecord, relay_keys: PublicKeys) -> Heartbeat | None:
        """None for what is no heartbeat, and for what the relay did not sign."""
        try:
            loaded = json.loads(record.value or b"")
            sent = {str(k): int(v) for k, v in loaded["sent"].items()}
            heartbeat = cls(str(loaded["store"]), int(loaded["position"]), sent, int(loaded["number"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None  # json reads 1e999 as infinity, and gives up on a thousand nested brackets
        in_bounds = all(0 <= n <= POSITION_MAX for n in (heartbeat.position, heartbeat.number, *heartbeat.sent.values()))
        return heartbeat if in_bounds and is_signed(record, relay_keys) else None


class SeenHeartbeat(NamedTuple):
    """A heartbeat and the broker's append time in ms."""

    heartbeat: Heartbeat
    at_ms: int


def newest_heartbeats(reader: Reader) -> list[SeenHeartbeat]:
    """The last ones that a relay signed, by their numbers, the newest first. Of one that was written again the first. Raises LogUnavailable."""
    keys, found = relay_keys(reader.settings), dict[int, SeenHeartbeat]()
    low, high = reader.bounds(TOPIC)[TOPIC, 0]
    for record in reader.read(TOPIC, {0: max(low, high - READ_BACK)}):
        heartbeat = Heartbeat.from_record(record, keys)
        if heartbeat is not None:
            found.setdefault(heartbeat.number, SeenHeartbeat(heartbeat, record.timestamp))
    return [found[number] for number in sorted(found, reverse=True)]


def is_covered(heartbeat: Heartbeat, topic: str, partition: int, chain: Chain[Any]) -> bool:
    """Whether everything that the heartbeat says was sent to the partition is proven. One that leaves the partition out is of another store, or
    older than its opening."""
    position = heartbeat.sent.get(f"{topic}/{partition}", 0)
    return position > 0 and chain.store == heartbeat.store and chain.position >= position


def sent_since(seen: Sequence[SeenHeartbeat]) -> float:
    """The append time in ms before which the newest heartbeat (`seen`: newest first) names every record that the relay sent: it writes one
    heartbeat at a time, and none while it sends records."""
    return seen[1].at_ms - SKEW_MS_MAX if len(seen) > 1 else 0.0


def relay_keys(settings: Settings) -> PublicKeys:
    """Raises LogMismatch when this process knows none."""
    try:
        return public_keys(settings, "relay")
    except KeyMissing as e:
        raise LogMismatch(str(e)) from e
