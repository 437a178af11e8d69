"""One record of the log and its address. Every reader of the log works on this type, whichever client fetched the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Headers = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, order=True)
class Coordinate:
    """The address of a record within one log (K1)."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the log holds it. `time_ms` is when the broker appended it."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]

    @property
    def coordinate(self) -> Coordinate:
        return Coordinate(self.topic, self.partition, self.offset)
