"""Which execution is billed, which is not, and why: the dated rules, applied to a tenant's facts in the order of the log.

A rule never reads a clock and never a later record of the log, except that a void reaches back; so the classes of the records of a
prefix of the log are a function of that prefix alone (K20). A change of any rule is a new RATING_VERSION beside the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

INT64_MIN = -(1 << 63)
"""Before any instant, in µs."""
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
    """The instant by which a fact is billed: its own time, or the append time where its own is out of bounds (K20)."""
    return occurred_at if append_us - LATE_US_MAX <= occurred_at <= append_us + EARLY_US_MAX else append_us


_TIME_IN_BOUNDS_SQL = f"occurred_at >= kafka_time_us - {LATE_US_MAX} AND occurred_at <= kafka_time_us + {EARLY_US_MAX}"
EFFECTIVE_US_SQL = f"if({_TIME_IN_BOUNDS_SQL}, occurred_at, kafka_time_us)"
"""`effective_us` as an expression over the columns of the usage table."""
RETIMED_SQL = f"NOT ({_TIME_IN_BOUNDS_SQL})"
"""Whether `effective_us` takes the append time."""


def billable(fact: str, outcome: str, shadow: bool) -> bool:
    """Whether this execution may be billed, before copies, voids and repeated keys are looked at."""
    return fact == SETTLED and outcome in BILLABLE_OUTCOMES and not shadow


BILLABLE_SQL = f"(fact = '{SETTLED}' AND outcome IN ({', '.join(repr(o) for o in sorted(BILLABLE_OUTCOMES))}) AND NOT shadow)"
"""`billable` as an expression over the columns of the usage table."""


class CopyDetector:
    """Tells copies (K10): the first record of an event_id counts, the same bytes again are a copy, other bytes a conflict.

    Holds one entry per event_id: about 150 bytes for each record of the tenants it is asked about.
    """

    def __init__(self) -> None:
        self._copies: dict[str, bytes] = {}
        self._unproven: set[bytes] = set()
        """First records that nothing but a decision of people counts."""
        self._not_first: set[bytes] = set()
        """Proven records that are not the first of their event_id and have other bytes: nobody but a broken gateway writes one."""

    def copy_kind(self, event_id: str, sha256: bytes, *, proven: bool = True) -> Literal["copied", "conflicting"] | None:
        """None for the first record of an event_id. `proven`: by the chain of its producer, rather than counted by people (K13)."""
        first = self._copies.get(event_id)
        if first is None:
            self._copies[event_id] = sha256
            if not proven:
                self._unproven.add(sha256)
            return None
        if proven and first != sha256:
            self._not_first.add(sha256)
        elif proven:
            self._unproven.discard(sha256)
        return "copied" if first == sha256 else "conflicting"

    @property
    def event_ids(self) -> Iterable[str]:
        """All that were met."""
        return self._copies.keys()

    def is_copy(self, event_id: str, sha256: bytes) -> bool:
        """Whether a proven record had these very bytes. Remembers nothing."""
        return (self._copies.get(event_id) == sha256 and sha256 not in self._unproven) or sha256 in self._not_first


class ReachesBack(Exception):
    """What is asked depends on records before those that are at hand: read all of them."""


class KeyWindows:
    """Of the executions of one invocation key, in log order, the first bills; others within a day of a billed one repeat it."""

    def __init__(self, billed: Mapping[bytes, Sequence[int]] | None = None, known_from: int = INT64_MIN) -> None:
        """`billed`: key → effective times so far, without those before `known_from` (µs UTC)."""
        self._billed = {key: list(times) for key, times in (billed or {}).items()}
        self.known_from = known_from

    def repeats(self, key: bytes, effective: int) -> bool:
        """Asked once per billable execution, in log order. An empty key repeats nothing. Raises ReachesBack."""
        if not key:
            return False
        if effective - KEY_WINDOW_US < self.known_from:
            raise ReachesBack("an execution with an invocation key is older than the keys that are remembered")
        billed = self._billed.setdefault(key, [])
        if any(abs(effective - at) < KEY_WINDOW_US for at in billed):
            return True
        billed.append(effective)
        return False

    def billed_from(self, instant: int) -> dict[bytes, tuple[int, ...]]:
        """As the first argument of a new one whose `known_from` is `instant`, or that of this one where it is later."""
        kept = ((key, tuple(at for at in times if at >= instant)) for key, times in self._billed.items())
        return {key: times for key, times in kept if times}


class BillingClassifier:
    """Gives each counted record below one cut its class. `voided` are the event_ids that voids below that cut name."""

    def __init__(self, voided: Set[str], windows: KeyWindows | None = None) -> None:
        self._voided = voided
        self.windows = windows or KeyWindows()

    def classify(self, record: UsageRecord) -> Literal["billed", "voided", "duplicate", "unbilled"]:
        """Asked in log order, without copies and conflicts."""
        if not billable(record.fact, record.outcome, record.shadow):
            return "unbilled"
        if record.event_id in self._voided:
            return "voided"
        effective = effective_us(record.occurred_at, record.append_us)
        return "duplicate" if self.windows.repeats(record.invocation_key, effective) else "billed"
