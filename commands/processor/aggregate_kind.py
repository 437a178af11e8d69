"""A kind of aggregate: the first part of its ids in the store, its first state, and how a fact changes the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from commands.processor.tenant_quota import TenantShare


class AggregateState(Protocol):
    """`version` counts the aggregate's facts; 0: there is none yet."""

    @property
    def version(self) -> int: ...


S = TypeVar("S", bound=AggregateState)


def _no_share(_state: object) -> None:
    return None


@dataclass(frozen=True, slots=True)
class AggregateKind(Generic[S]):
    """Each feature has one. `name` is stored for ever. `share`: what the aggregate has to do with its tenant's quota; every command on the
    aggregate is decided by the quota, too, if it changes this."""

    name: str
    initial: S
    evolve: Callable[[S, Any], S]
    share: Callable[[S], TenantShare | None] = _no_share

    def originator(self, key: str) -> str:
        """The aggregate's id in the store."""
        return f"{self.name}/{key}"
