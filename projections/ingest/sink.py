"""What a topic's sink must do, and what it is given: chunks of records, from `chunks.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from events.log.record import LogRecord


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one partition, each offset once, starting where the sink's last chunk of it ended."""

    topic: str
    partition: int
    records: Sequence[LogRecord]


class DeadLetter(NamedTuple):
    """A record that no fold can read: it gets a tombstone row, and the fold goes on."""

    record: LogRecord
    code: str
    reason: str


PublishDeadLetters = Callable[[Sequence[DeadLetter]], None]
"""Durable when it returns."""


class Sink(Protocol):
    """Writes one topic into its tables. All methods run in threads of their own, one call at a time per method, never in the event loop.

    `resume(partition)`: called at each assignment; the first offset that the table misses, after checking that this is the log
        the table was filled from (see `projections.ingest.table_offsets`). May wait while Kafka or ClickHouse is away; raises LogGenerationChanged.
    `prepare(chunks)`: whatever can be made ready while the chunks before are still being written.
    `write(prepared)`: done when every record is durable in the table. `ensure_member()` must be called before each insert: it ends
        the process when another worker may own the partition (K8). Raising ends the process too; nothing of it is acknowledged.
    """

    topic: str
    rows_max: int
    """Records gathered into one write, at most (one chunk more or less)."""
    wait_s: float
    """Longest a first record waits for company while the write before it lasts."""

    def resume(self, partition: int) -> int: ...
    def prepare(self, chunks: list[Chunk]) -> Any: ...
    def write(self, prepared: Any) -> None: ...
