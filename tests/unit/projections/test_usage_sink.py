"""How records are distributed over inserts: each once, in order, and never two parts of one Kafka partition in one insert (K7)."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from projections.usage.runs import Run, split
from projections.usage.table import OFFSETS_PER_PARTITION as SIZE


@dataclass(frozen=True)
class RecordedInsert:
    partition: int
    offset: int
    topic: str = "usage"
    timestamp: int = 0
    key: bytes | None = None
    value: bytes | None = b""
    headers: tuple[tuple[str, bytes], ...] = field(default=())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3 * SIZE), st.integers(1, 30), st.integers(1, SIZE)), min_size=1, max_size=6))
def test_an_insert_never_reaches_two_parts_of_one_partition_and_nothing_is_left_out(given_runs: list[tuple[int, int, int, int]]) -> None:
    runs, ends = list[Run](), dict[int, int]()
    for partition, gap, count, step in sorted(given_runs):
        start = ends.get(partition, 0) + gap
        records = [RecordedInsert(partition, start + i * step) for i in range(count)]
        ends[partition] = records[-1].offset + 1
        runs.append(Run(partition, records))
    inserts = split(runs)
    for insert in inserts:
        parts = {(run.partition, r.offset // SIZE) for run in insert for r in run.records}
        assert len(parts) == len({p for p, _ in parts})
        assert all(run.records for run in insert)
    dealt = sorted((r.partition, r.offset) for insert in inserts for run in insert for r in run.records)
    assert dealt == sorted((r.partition, r.offset) for run in runs for r in run.records)
