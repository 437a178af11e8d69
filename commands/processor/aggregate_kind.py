"""A kind of aggregate: the first part of its ids in the store, its first state, and how a fact changes the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class AggregateState(Protocol):
    """`version` counts the aggregate's facts; 0: there is none yet."""

    @property
    def version(self) -> int: ...


S = TypeVar("S", bound=AggregateState)


@dataclass(frozen=True, slots=True)
class AggregateKind(Generic[S]):
    """Each feature has one. `name` is stored for ever."""

    name: str
    initial: S
    evolve: Callable[[S, Any], S]

    def originator(self, key: str) -> str:
        """The aggregate's id in the store."""
        return f"{self.name}/{key}"
