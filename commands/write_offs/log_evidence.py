"""What the log has of a record or an epoch that is to be written off."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from commands.write_offs.producers import EpochStatus
from commands.write_offs.record_sets import RecordOnLog
from events.facts.producers import ProducerClosed, ProducerOpened
from events.facts.topics import TOPICS
from events.facts.usage import InvocationSettled, InvocationVoided
from events.log.client import LogMismatch, Reader
from events.log.partitioner import partition_of
from events.log.record import Coordinate, Record
from events.schema.codec import Codec, Undecodable

GAP_MAX = 1000
"""Offsets between two records of a set that are read rather than skipped: a new position costs about as much."""
RECORDS_READ_MAX = 500_000
"""Read for one set, a new position counted as `GAP_MAX`: some ten seconds."""
USAGE_FACTS = (InvocationSettled.__name__, InvocationVoided.__name__)
Run = Sequence[tuple[int, int]]
"""(partition, offset) of records of one partition, ascending, with no gap above `GAP_MAX`."""


def sha256_at(reader: Reader, at: Coordinate) -> bytes | None:
    """Of the value at a coordinate; None when the log has no record there."""
    low, high = reader.bounds(at.topic)[at.topic, at.partition]
    if not low <= at.offset < high:
        return None
    try:
        return hashlib.sha256(reader.record_at(at.topic, at.partition, at.offset).value or b"").digest()
    except LogMismatch:
        return None


def runs_of(positions: Sequence[tuple[int, int]]) -> list[Run]:
    """What is read in one go each."""
    runs: list[list[tuple[int, int]]] = []
    for partition, offset in sorted(positions):
        if runs and runs[-1][-1][0] == partition and offset - runs[-1][-1][1] <= GAP_MAX:
            runs[-1].append((partition, offset))
        else:
            runs.append([(partition, offset)])
    return list(runs)


def reading_cost(runs: Sequence[Run]) -> int:
    """In records."""
    return sum(GAP_MAX + run[-1][1] - run[0][1] for run in runs)


def records_at(reader: Reader, topic: str, runs: Sequence[Run], codec: Codec | None = None) -> Mapping[tuple[int, int], RecordOnLog]:
    """What is at each place where the log has a record; decoded only with a `codec`, which may look on the log for each schema it does not know."""
    partitions = range(TOPICS[topic].partitions)
    found: dict[tuple[int, int], RecordOnLog] = {}
    for run in runs:
        partition, wanted = run[0][0], {offset for _, offset in run}
        ends = {p: run[-1][1] + 1 if p == partition else 0 for p in partitions}
        for record in reader.read(topic, {partition: run[0][1]}, ends):
            if record.offset in wanted:
                sha256 = hashlib.sha256(record.value or b"").digest()
                found[partition, record.offset] = RecordOnLog(sha256, codec is not None and _is_billable(codec, record))
    return found


def _is_billable(codec: Codec, record: Record) -> bool:
    if record.topic != "usage":
        return False
    try:
        name, body = codec.decode(record.value)
    except Undecodable:
        return False
    return name in USAGE_FACTS and partition_of(body["tenant"].encode(), TOPICS["usage"].partitions) == record.partition


class EpochStatuses:
    """What producers wrote about their epochs, as far as it was read: a question reads what is new on the topic, and no more. One thread at
    a time. Holds some 300 bytes an epoch, and an epoch is one start of a gateway."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._ends: dict[int, int] = {}
        self._closed: dict[str, dict[str, bool]] = {}
        """Epoch → producer that opened it → whether it is closed."""

    def status(self, reader: Reader, producer: str, epoch: str) -> EpochStatus:
        for record in reader.read("producers", self._ends):
            self._take(record)
            self._ends[record.partition] = record.offset + 1
        closed = self._closed.get(epoch, {}).get(producer)
        return "unknown" if closed is None else "closed" if closed else "open"

    def _take(self, record: Record) -> None:
        try:
            name, body = self._codec.decode(record.value)
        except Undecodable:
            return  # bytes that are no fact open and close nothing
        if name == ProducerOpened.__name__:
            self._closed.setdefault(body["epoch"], {}).setdefault(body["producer"], False)
        if name == ProducerClosed.__name__ and body["epoch"] in self._closed:
            self._closed[body["epoch"]] = dict.fromkeys(self._closed[body["epoch"]], True)
