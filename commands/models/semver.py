"""Version numbers and their order. Source: Semantic Versioning 2.0.0, clauses 2, 9, 10 and 11."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

TEXT_MAX = 64
PATTERN = (
    r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})"
    r"(?:-((?:0|[1-9][0-9]{0,8}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]{0,8}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$"
)
_SEMVER = re.compile(PATTERN, re.ASCII)


@total_ordering
@dataclass(frozen=True, slots=True)
class SemVer:
    """A version number. Equal and ordered by precedence: build metadata does not count (clause 10)."""

    major: int
    minor: int
    patch: int
    prerelease: tuple[str, ...] = ()

    def __lt__(self, other: SemVer) -> bool:
        return self._rank() < other._rank()

    def _rank(self) -> tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]:
        # A release ranks above its pre-releases; numbers below words; fewer identifiers below more (clause 11).
        parts = tuple((not p.isdigit(), int(p) if p.isdigit() else 0, "" if p.isdigit() else p) for p in self.prerelease)
        return (self.major, self.minor, self.patch, not self.prerelease, parts)


def parse(text: str) -> SemVer | None:
    """None when `text` is no SemVer 2.0 of at most 64 characters."""
    found = _SEMVER.match(text) if len(text) <= TEXT_MAX and not text.endswith("\n") else None
    if found is None:
        return None
    major, minor, patch, prerelease, _ = found.groups()
    return SemVer(int(major), int(minor), int(patch), tuple(prerelease.split(".")) if prerelease else ())
