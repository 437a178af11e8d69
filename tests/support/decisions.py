"""`given(decider, state, *steps).when(command).then_rejected(code)`, `.then_accepted()`, `.facts`: how the tests of a decision read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected
from events.facts.fact import UserId

S = TypeVar("S")
NOW = 1_800_000_000_000_000


class Decider(Protocol):
    """A module with `decide` and `evolve`, or a combination of two that a test makes."""

    @property
    def decide(self) -> Any: ...
    @property
    def evolve(self) -> Any: ...


@dataclass(frozen=True)
class Rules:
    """A rule and a fold from two modules."""

    decide: Any
    evolve: Any


@dataclass(frozen=True)
class Decision:
    outcome: Any

    @property
    def facts(self) -> tuple[Any, ...]:
        assert not isinstance(self.outcome, Rejected), self.outcome
        return tuple(self.outcome)

    def then_accepted(self) -> None:
        assert not isinstance(self.outcome, Rejected), self.outcome

    def then_rejected(self, code: str, ground: str = "") -> Rejected:
        """Every violation says what to do and, where the test names the ground, what is wrong there."""
        assert isinstance(self.outcome, Rejected), self.outcome
        assert all(v.remedy and (v.field or not ground) for v in self.outcome.violations)
        assert (self.outcome.code, self.outcome.ground) == (code, ground or self.outcome.ground)
        return self.outcome


@dataclass(frozen=True)
class Given(Generic[S]):
    decider: Decider
    state: S

    def when(self, command: Any, by: str = "admin", *, now: int = NOW, number: int = 0) -> Decision:
        """Whom it comes from, at what instant (µs UTC), and the command's number, of which ids are made."""
        context = CommandContext(f"00000000-0000-4000-8000-{number:012d}", now, UserId(by), "cause", "correlation")
        return Decision(self.decider.decide(self.state, command, context))


def given(decider: Decider, state: S, *steps: Any, now: int = NOW) -> Given[S]:
    """After these steps, each a command or (user, command), none of which may be rejected."""
    evolved: Any = state
    for step in steps:
        user, command = step if isinstance(step, tuple) else ("admin", step)
        for fact in Given(decider, evolved).when(command, user, now=now).facts:
            evolved = decider.evolve(evolved, fact)
    return Given(decider, evolved)
