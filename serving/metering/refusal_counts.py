"""Refused calls, counted: many of them are a few facts a second."""

from __future__ import annotations

from typing import NamedTuple

LINES_MAX = 1000
"""Different refusals counted apart per second; past it they are counted together under `-`."""
UNKNOWN = "-"


class RefusalKey(NamedTuple):
    """What refusals are counted by: fields of `InvocationRefused`. Unknown names are `-`, so that callers cannot create lines."""

    tenant: str
    key_id: str
    user: str
    model: str
    operation: str
    status: int
    error_code: str


class RefusalCounter:
    """Counts since the last `drain`."""

    def __init__(self) -> None:
        self._counts: dict[RefusalKey, int] = {}

    def add(self, key: RefusalKey) -> None:
        if key not in self._counts and len(self._counts) >= LINES_MAX:
            key = RefusalKey(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, key.status, key.error_code)
        self._counts[key] = self._counts.get(key, 0) + 1

    def drain(self) -> list[tuple[RefusalKey, int]]:
        counts, self._counts = self._counts, {}
        return list(counts.items())
