"""The relay's heartbeat: what a fold compares its position with, to know how fresh it is (K5)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from events.log.chain import POSITION_MAX


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How far the relay is: its position, and the last position it sent to each partition. JSON on `heartbeats`; not a fact (K5)."""

    store: str
    position: int
    sent: Mapping[str, int]
    """`topic/partition` → last position sent there."""

    def to_json(self) -> bytes:
        return json.dumps({"store": self.store, "position": self.position, "sent": dict(self.sent)}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, value: bytes | None) -> Heartbeat | None:
        """None for bytes that are no heartbeat."""
        try:
            loaded = json.loads(value or b"")
            heartbeat = cls(str(loaded["store"]), int(loaded["position"]), {str(k): int(v) for k, v in loaded["sent"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None  # json reads 1e999 as infinity, and gives up on a thousand nested brackets
        return heartbeat if all(0 <= n <= POSITION_MAX for n in (heartbeat.position, *heartbeat.sent.values())) else None
