"""How a rule rejects a command: a value with a code, the field it is about, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from events.process.problem import Violation

Ground = Literal["invalid", "conflict", "missing", "forbidden", "stale", "gone"]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The command may not happen. `ground` decides the HTTP status; `violations` are never empty and name every broken rule at once."""

    ground: Ground
    violations: tuple[Violation, ...]

    @property
    def code(self) -> str:
        return self.violations[0].code

    @property
    def message(self) -> str:
        return "; ".join(v.message for v in self.violations)


def invalid(code: str, message: str, field: str = "", remedy: str = "") -> Rejected:
    """The input itself is wrong, whatever the state."""
    return Rejected("invalid", (Violation(code, message, field, remedy),))


def conflict(code: str, message: str, field: str = "", remedy: str = "") -> Rejected:
    """The input is fine, but not in this state."""
    return Rejected("conflict", (Violation(code, message, field, remedy),))


def missing(code: str, message: str, field: str = "", remedy: str = "") -> Rejected:
    """What the command is about does not exist, or is not the caller's to see."""
    return Rejected("missing", (Violation(code, message, field, remedy),))


def forbidden(code: str, message: str, field: str = "", remedy: str = "") -> Rejected:
    """It exists, and this caller may not."""
    return Rejected("forbidden", (Violation(code, message, field, remedy),))


def gone(code: str, message: str, field: str = "", remedy: str = "") -> Rejected:
    """It existed, and never will again."""
    return Rejected("gone", (Violation(code, message, field, remedy),))
