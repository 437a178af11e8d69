"""When an application that Ray gave up on is started again: after growing pauses, a bounded number of times, then an alert. Pure.

Ray itself starts a failing replica three times and then leaves it for good, although what was missing (an artifact, memory, a
node) may be back a minute later. The number of the attempt is part of the configuration, so a new controller knows it.
"""

from __future__ import annotations

from collections.abc import Mapping

PAUSES_S = (10.0, 30.0, 120.0)
"""Pauses before the second, third and fourth attempt."""
ATTEMPTS_MAX = len(PAUSES_S) + 1


class Retries:
    """Remembers when each attempt was first seen to have failed."""

    def __init__(self) -> None:
        self._failed: dict[tuple[str, int], float] = {}

    def due(self, failed: Mapping[str, int], now: float, *, endless: str = "") -> frozenset[str]:
        """Of the failed applications, with the number of the attempt that failed, those to start again now. `endless` is never given up."""
        self._failed = {(name, attempt): self._failed.get((name, attempt), now) for name, attempt in failed.items()}
        return frozenset(
            name
            for (name, attempt), since in self._failed.items()
            if (attempt < ATTEMPTS_MAX or name == endless) and now - since >= PAUSES_S[min(attempt, len(PAUSES_S)) - 1]
        )


def attempts_exhausted(failed: Mapping[str, int]) -> frozenset[str]:
    """Those that had all their attempts."""
    return frozenset(name for name, attempt in failed.items() if attempt >= ATTEMPTS_MAX)
