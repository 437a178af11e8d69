"""Which event_ids a statement has counted, eight bytes each: a later record that has one of them reaches back (K10, K27)."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import chain

ID_BYTES = 8
RUN_MAX = 1 << 21
"""Ids of runs that are merged into one: bounds the memory of that, about 100 MB."""
Run = Sequence[int]
"""Fingerprints in ascending order."""


def fingerprint(event_id: str) -> int:
    return int.from_bytes(blake2b(event_id.encode(), digest_size=ID_BYTES).digest())


class EventIds:
    """Says yes of every id that was added, and of another one once in 2⁶⁴ / their number: whoever asks looks closer then."""

    def __init__(self, runs: Sequence[Run] = ()) -> None:
        self.runs = tuple(runs)

    def __contains__(self, event_id: str) -> bool:
        if not self.runs:
            return False
        wanted = fingerprint(event_id)
        for run in self.runs:
            at = bisect_left(run, wanted)
            if at < len(run) and run[at] == wanted:
                return True
        return False

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def with_added(self, event_ids: Iterable[str]) -> EventIds:
        """Runs that are not much longer than the one behind them are merged with it, so that there are few, and most are kept as they are."""
        runs, last = list(self.runs), array("Q", sorted(map(fingerprint, event_ids)))
        if not last:
            return self
        while runs and len(runs[-1]) <= 2 * len(last) and len(runs[-1]) + len(last) <= RUN_MAX:
            last = array("Q", sorted(chain(runs.pop(), last)))
        return EventIds([*runs, last])
