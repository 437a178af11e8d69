"""One record of the log and its address. Every reader of the log works on this type, whichever client fetched the record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

Headers = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, order=True)
class Coordinate:
    """The address of a record within one log (K1)."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class LogRecord(Protocol):
    """A record as any client hands it over: `Record` of our reader, aiokafka's `ConsumerRecord`. `timestamp` is the broker's append
    time in ms; read headers through `dict(record.headers)`, since aiokafka gives pairs."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Mapping[str, bytes] | Iterable[tuple[str, bytes]]: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One record as our reader hands it over. `timestamp` is the broker's append time in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]

    @property
    def coordinate(self) -> Coordinate:
        return Coordinate(self.topic, self.partition, self.offset)
