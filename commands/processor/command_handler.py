"""How commands of one kind are carried out, and one such command on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from access.principal import Principal
from commands.processor.aggregate_kind import AggregateKind, S
from commands.processor.context import CommandContext
from commands.processor.idempotency_store import RepeatableRequest
from commands.processor.rejection import Rejected
from events.facts.fact import DecidedFact

C = TypeVar("C")


def _nothing(_state: object, _command: object) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)  # no slots: Python 3.11 cannot make CommandHandler[S, C](…) with both
class CommandHandler(Generic[S, C]):
    """A constant of its feature.

    `decide` is the rule: the facts, or a rejection. No facts at all: nothing is written, and all is well.
    `answer` makes the body of the answer from the new state and the command. It is kept, so it holds no secret; members whose names begin
    with '_' are kept and not shown.
    `visible`, if given, is asked before the rule: a rejection for callers who may not know of the aggregate.
    `reveal`, if given, makes members that are never kept, from the kept answer and the caller's own secret.
    `created` says that success makes a new resource.
    """

    aggregate: AggregateKind[S]
    decide: Callable[[S, C, CommandContext], Sequence[DecidedFact] | Rejected]
    answer: Callable[[S, C], Mapping[str, Any]] = _nothing
    visible: Callable[[S, Principal], Rejected | None] | None = None
    reveal: Callable[[Mapping[str, Any], str], Mapping[str, Any]] | None = None
    created: bool = False


@dataclass(frozen=True, slots=True)
class PendingCommand(Generic[S, C]):
    """One command that waits for its decision. `key` names the aggregate within its kind; `principal` None: no caller, nothing is hidden.
    `if_match` is the only version that it may be decided on, `request` what makes a repeated request the same."""

    handler: CommandHandler[S, C]
    key: str
    command: C
    context: CommandContext
    principal: Principal | None
    if_match: int | None = None
    request: RepeatableRequest | None = None

    @property
    def originator(self) -> str:
        return self.handler.aggregate.originator(self.key)

    def decide(self, state: S) -> Sequence[DecidedFact] | Rejected:
        visible = self.handler.visible
        hidden = visible(state, self.principal) if visible is not None and self.principal is not None else None
        return hidden or self.handler.decide(state, self.command, self.context)

    def evolve(self, state: S, fact: DecidedFact) -> S:
        return self.handler.aggregate.evolve(state, fact)

    def answer(self, state: S) -> Mapping[str, Any]:
        return self.handler.answer(state, self.command)
