"""When an application that Ray gave up on is tried again: after growing pauses, a bounded number of times, then somebody is told. Pure.

Ray itself starts a failing replica three times and then leaves it for good, although what was missing (an artifact, memory, a
node) may be back a minute later. The number of the attempt is part of what Ray is told, so it outlives the controller.
"""

from __future__ import annotations

from collections.abc import Mapping

AFTER_S = (10.0, 30.0, 120.0)
"""Pauses before the second, third and fourth attempt."""
ATTEMPTS_MAX = len(AFTER_S) + 1
FAILED = "DEPLOY_FAILED"


class Retries:
    """Remembers since when each attempt is known to have failed."""

    def __init__(self) -> None:
        self._failed: dict[tuple[str, int], float] = {}

    def due(self, failed: Mapping[str, int], now: float, *, endless: str = "") -> frozenset[str]:
        """Of the applications that failed, with the number of that attempt, those to try again now. `endless` is never given up."""
        self._failed = {(name, attempt): self._failed.get((name, attempt), now) for name, attempt in failed.items()}
        return frozenset(
            name
            for (name, attempt), since in self._failed.items()
            if (attempt < ATTEMPTS_MAX or name == endless) and now - since >= AFTER_S[min(attempt, len(AFTER_S)) - 1]
        )


def given_up(failed: Mapping[str, int]) -> frozenset[str]:
    """Those that have had all their attempts."""
    return frozenset(name for name, attempt in failed.items() if attempt >= ATTEMPTS_MAX)
