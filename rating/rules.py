"""Which execution is billed, which is not, and why: the dated rules, applied to a tenant's facts in the order of the log.

A rule never looks at a clock and never at what comes later in the log, except that a void reaches back; so the verdicts over a
prefix of the log are a function of that prefix alone (K20). A change of any rule is a new RATING_VERSION beside the old one.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

RATING_VERSION = 1
"""Version 1, in force from the first fact: `succeeded` executions that are no shadow are billed, at the price of their own
time; executions that were only opened, abandoned, refused, voided, or repeat an invocation key within a day are not."""

SETTLED = "InvocationSettled"
VOIDED = "InvocationVoided"

BILLABLE_OUTCOMES = frozenset({"succeeded"})
DAY_US = 86_400_000_000
KEY_WINDOW_US = DAY_US
"""Executions of one invocation key closer than this to a billed one are its repetitions (K11)."""
LATE_US_MAX = 7 * DAY_US
EARLY_US_MAX = 5 * 60 * 1_000_000
"""How far a fact's own time may lie before and after its append time; beyond that the append time holds (K20)."""

Verdict = Literal["billed", "copied", "conflicting", "voided", "duplicate", "unbilled"]


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What rating needs of one record on `usage`. `quantities` are in the order of `METERS`; instants in µs UTC."""

    partition: int
    offset: int
    append_us: int
    sha256: bytes
    fact: str
    event_id: str
    occurred_at: int
    epoch: str
    sequence: int
    outcome: str = ""
    shadow: bool = False
    invocation_key: bytes = b""
    provider: str = ""
    model: str = ""
    model_version: str = ""
    quantities: tuple[int, ...] = ()
    voided: str = ""
    """Of a void: the event_id of the settled fact it takes back."""


def effective_us(occurred_at: int, append_us: int) -> int:
    """When the fact counts: its own time, unless no honest clock could have said it; then the append time."""
    return occurred_at if append_us - LATE_US_MAX <= occurred_at <= append_us + EARLY_US_MAX else append_us


def billable(fact: str, outcome: str, shadow: bool) -> bool:
    """Could this execution be billed at all, before asking for copies, voids and keys?"""
    return fact == SETTLED and outcome in BILLABLE_OUTCOMES and not shadow


class FirstSeen:
    """Tells copies (K10): the first record of an event_id counts, the same bytes again are a copy, other bytes a conflict.

    Holds one entry per event_id: about 150 bytes for each record of the tenants it is asked about.
    """

    def __init__(self) -> None:
        self._seen: dict[str, bytes] = {}

    def verdict(self, event_id: str, sha256: bytes) -> Literal["copied", "conflicting"] | None:
        """None for the first record of an event_id."""
        first = self._seen.get(event_id)
        if first is None:
            self._seen[event_id] = sha256
            return None
        return "copied" if first == sha256 else "conflicting"


class KeyWindows:
    """Of the executions of one invocation key, in log order, the first bills; others within a day of a billed one repeat it."""

    def __init__(self) -> None:
        self._billed: dict[bytes, list[int]] = {}

    def repeats(self, key: bytes, effective: int) -> bool:
        """Asked once per billable execution, in log order. An empty key repeats nothing."""
        if not key:
            return False
        billed = self._billed.setdefault(key, [])
        if any(abs(effective - at) < KEY_WINDOW_US for at in billed):
            return True
        billed.append(effective)
        return False


class Judge:
    """Gives each counted record below one cut its verdict. `voided` are the event_ids taken back by voids below that cut."""

    def __init__(self, voided: Set[str]) -> None:
        self._voided = voided
        self._windows = KeyWindows()

    def verdict(self, record: UsageRecord) -> Literal["billed", "voided", "duplicate", "unbilled"]:
        """Asked in log order, without copies and conflicts."""
        if not billable(record.fact, record.outcome, record.shadow):
            return "unbilled"
        if record.event_id in self._voided:
            return "voided"
        effective = effective_us(record.occurred_at, record.append_us)
        return "duplicate" if self._windows.repeats(record.invocation_key, effective) else "billed"
