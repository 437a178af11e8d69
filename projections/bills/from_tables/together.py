"""One question for many, and none of them waits for another's: where it fails it is asked for each half, down to the one whose it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from projections.ingest.clickhouse import ClickHouse, ClickHouseUnavailable

K = TypeVar("K")
V = TypeVar("V")


def together(clickhouse: ClickHouse, keys: Sequence[K], ask: Callable[[Sequence[K]], Mapping[K, V]]) -> Iterator[tuple[K, V | Exception]]:
    """Each key's answer, or the error of the question for that key alone. Raises ClickHouseUnavailable where nobody gets an answer.

    Of n keys with one that fails about 2 log2(n) questions are asked.
    """
    if not keys:
        return
    try:
        found = ask(keys)
        answers: list[tuple[K, V | Exception]] = [(key, found[key]) for key in keys]
    except Exception as e:
        if isinstance(e, ClickHouseUnavailable):
            clickhouse.value("SELECT 1")  # raises the same where nobody gets an answer
        if len(keys) == 1:
            yield keys[0], e
            return
        half = len(keys) // 2
        yield from together(clickhouse, keys[:half], ask)
        yield from together(clickhouse, keys[half:], ask)
    else:
        yield from answers
