"""A fact that does not follow from the state it meets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Misfit:
    """A value, not an exception: each reader decides what it does then. A command stops, a fold of the log names it and goes on (K26)."""

    reason: str
