"""Follows the relay's chain: a fold takes a decided record only if it is the next one of its partition (K4).

Each decided record names its store, its position there and the position of the record before it in the same partition. A
position already seen is a copy; a record whose predecessor is missing waits. Pure: the caller waits, alarms and reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

POSITION, PREVIOUS, STORE = "position", "previous", "store"
STORE_OPENED = "StoreOpened"
POSITION_MAX = (1 << 63) - 1
"""What a store and a table can hold: a stray number past it must not reach an insert."""
STALLED_S_MAX = 30.0
"""A gap that lasts longer is not reordering: somebody must look."""


class ChainCheck(Enum):
    NEXT = "next"
    COPY = "copy"
    WAIT = "waits"
    UNREADABLE = "stray"
    """Claims to open a store, and nobody can read it (`events.log.chain_check`): set aside, with an alarm."""


@dataclass(frozen=True, slots=True)
class ChainPosition:
    """Where a decided record says it stands."""

    store: str
    position: int
    previous: int

    @property
    def headers(self) -> dict[str, bytes]:
        return {STORE: self.store.encode(), POSITION: b"%d" % self.position, PREVIOUS: b"%d" % self.previous}


def chain_position_of(headers: Mapping[str, bytes]) -> ChainPosition | None:
    """None for a record that is not decided, or whose headers are nobody's of ours."""
    try:
        chain_position = ChainPosition(headers[STORE].decode(), int(headers[POSITION]), int(headers[PREVIOUS]))
    except (KeyError, ValueError):
        return None
    return chain_position if 0 <= chain_position.position <= POSITION_MAX and 0 <= chain_position.previous <= POSITION_MAX else None


@dataclass(slots=True)
class Chain:
    """What one partition has shown so far: the store and its last position. A new log starts at ("", 0)."""

    store: str = ""
    position: int = 0
    earlier_stores: dict[str, int] = field(default_factory=dict[str, int])
    """Earlier stores of this partition and where they ended, to tell a copy from a stranger."""

    def check(self, chain_position: ChainPosition, opened: tuple[str, int] | None = None) -> ChainCheck:
        """`opened` = (previous_store, previous_position) of a StoreOpened, which alone may change the store. Positions go on growing
        across stores, so that one number orders the whole log."""
        if chain_position.store == self.store:
            if chain_position.position <= self.position:
                return ChainCheck.COPY
            return ChainCheck.NEXT if chain_position.previous == self.position else ChainCheck.WAIT
        if chain_position.store in self.earlier_stores and chain_position.position <= self.earlier_stores[chain_position.store]:
            return ChainCheck.COPY
        if (
            opened is not None
            and opened == (self.store, self.position)
            and chain_position.previous == 0
            and chain_position.position > self.position
        ):
            return ChainCheck.NEXT
        return ChainCheck.WAIT

    def advance(self, chain_position: ChainPosition) -> None:
        """Moves on to a record judged NEXT."""
        if chain_position.store != self.store and self.store:
            self.earlier_stores[self.store] = self.position
        self.store, self.position = chain_position.store, chain_position.position


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How far the relay is. JSON on `heartbeats`; not a fact (K5)."""

    store: str
    position: int
    sent: Mapping[str, int]
    """`topic/partition` → last position sent there."""

    def to_json(self) -> bytes:
        return json.dumps({"store": self.store, "position": self.position, "sent": dict(self.sent)}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, value: bytes | None) -> Heartbeat | None:
        """None when this is not a heartbeat."""
        try:
            loaded = json.loads(value or b"")
            heartbeat = cls(str(loaded["store"]), int(loaded["position"]), {str(k): int(v) for k, v in loaded["sent"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None  # 1e999 is infinite to json, and a thousand brackets are too deep for it
        return heartbeat if all(0 <= n <= POSITION_MAX for n in (heartbeat.position, *heartbeat.sent.values())) else None
