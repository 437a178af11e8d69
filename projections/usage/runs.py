"""Runs: records of one Kafka partition in order, distributed over inserts so that each becomes one part of each partition (K7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from events.log.record import LogRecord
from projections.usage.table import OFFSETS_PER_PARTITION

SHARED_ROWS_MIN = 20_000
"""So many rows of several partitions become two inserts side by side; for fewer the fixed cost of an insert (12 ms) is more than is won."""


@dataclass(frozen=True, slots=True)
class Run:
    """Records of one partition, offsets growing."""

    partition: int
    records: Sequence[LogRecord]


def ranges_of(runs: Sequence[Run]) -> tuple[str, tuple[int, ...]]:
    """`partition:first-last#count` of each run, the insert's token, and the partitions."""
    token = ",".join(f"{run.partition}:{run.records[0].offset}-{run.records[-1].offset}#{len(run.records)}" for run in runs)
    return token, tuple(dict.fromkeys(run.partition for run in runs))


def runs_of(records: Sequence[LogRecord]) -> list[Run]:
    """Of records sorted by partition and offset."""
    return [Run(p, list(of_partition)) for p, of_partition in groupby(records, key=lambda r: r.partition)]


def split(runs: Sequence[Run]) -> list[list[Run]]:
    """So that no insert reaches two partitions of the table that belong to one Kafka partition (K7): at every 10 million offsets."""
    if not runs:
        return []
    inserts = dict[int, list[Run]]()
    firsts = dict[int, int]()
    for run in runs:
        base = firsts.setdefault(run.partition, run.records[0].offset // OFFSETS_PER_PARTITION)
        if run.records[-1].offset // OFFSETS_PER_PARTITION == base:
            inserts.setdefault(0, []).append(run)
            continue
        for nth, within in groupby(run.records, key=lambda r: r.offset // OFFSETS_PER_PARTITION):
            inserts.setdefault(nth - base, []).append(Run(run.partition, list(within)))
    return list(inserts.values())


def balanced(runs: Sequence[Run]) -> list[Sequence[Run]]:
    """Many rows as two inserts of about the same size; no Kafka partition is in both, so each still gets one part per insert."""
    rows = sum(len(run.records) for run in runs)
    if len(runs) < 2 or rows < SHARED_ROWS_MIN:
        return [runs]
    taken, at = 0, 0
    while at < len(runs) - 1 and taken < rows / 2:
        taken, at = taken + len(runs[at].records), at + 1
    return [runs[:at], runs[at:]]
