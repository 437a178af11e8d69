"""The chain of decided records: a fold accepts a record only if it is the next one of its partition (K4).

Each decided record names its store, its position there and the position of the record before it in the same partition. A
position already seen is a copy; a record whose predecessor is missing waits. Pure: the caller waits, alarms and reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

POSITION, PREVIOUS, STORE = "position", "previous", "store"
STORE_OPENED = "StoreOpened"
POSITION_MAX = (1 << 63) - 1
"""What a store and a table can hold: a larger number in a foreign header must not reach an insert."""
STALLED_S_MAX = 30.0
"""A gap that lasts longer is not reordering: an operator must look."""


class ChainCheck(Enum):
    """What a fold does with a decided record."""

    NEXT = "next"
    """Accept it."""
    COPY = "copy"
    """Skip it: the fold has this position."""
    WAIT = "wait"
    """Keep it: a record before it is missing."""
    UNREADABLE = "unreadable"
    """Set it aside with an alarm: its headers say that it opens a store, its bytes cannot be read (`events.log.chain_check`)."""


@dataclass(frozen=True, slots=True)
class ChainPosition:
    """The position in the chain that a record's headers claim. Positions of one store grow, with gaps."""

    store: str
    position: int
    previous: int

    @property
    def headers(self) -> dict[str, bytes]:
        return {STORE: self.store.encode(), POSITION: b"%d" % self.position, PREVIOUS: b"%d" % self.previous}


def chain_position_of(headers: Mapping[str, bytes]) -> ChainPosition | None:
    """None for a record without these headers, or with values that the relay never writes."""
    try:
        chain_position = ChainPosition(headers[STORE].decode(), int(headers[POSITION]), int(headers[PREVIOUS]))
    except (KeyError, ValueError):
        return None
    return chain_position if 0 <= chain_position.position <= POSITION_MAX and 0 <= chain_position.previous <= POSITION_MAX else None


@dataclass(slots=True)
class Chain:
    """How far one partition is read: the store and its last position. A new log starts at ("", 0)."""

    store: str = ""
    position: int = 0
    earlier_stores: dict[str, int] = field(default_factory=dict[str, int])
    """Earlier stores of this partition and their last positions: a copy of their records is known as a copy."""

    def check(self, chain_position: ChainPosition, opened: tuple[str, int] | None = None) -> ChainCheck:
        """`opened` = (previous_store, previous_position) of a StoreOpened: only that fact changes the store. Positions keep growing
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
        """Accepts a record whose check is NEXT."""
        if chain_position.store != self.store and self.store:
            self.earlier_stores[self.store] = self.position
        self.store, self.position = chain_position.store, chain_position.position
