"""Waiting items of several tenants: they are taken from each tenant in turn, and no tenant takes the room of others.

A tenant may have as many items and bytes waiting as are still free. So one alone gets half of the room, two get a third each, and
whoever comes next always finds some (dynamic thresholds; Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
UNWEIGHED = 1
"""Bytes that a queue has room for whose items have none: they are counted only."""


class QueueFull(Exception):
    """`items` and `bytes` of this tenant wait already."""

    def __init__(self, items: int, size: int) -> None:
        super().__init__(items, size)
        self.items, self.bytes = items, size


class _Share(Generic[T]):
    __slots__ = ("bytes", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[T, int]] = deque()
        self.bytes = 0


class FairQueue(Generic[T]):
    """Room for `items_max` items of together `bytes_max` bytes. Of one event loop, or under a lock. `put` and `take` cost the same, whoever waits."""

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self._items_max, self._bytes_max = items_max, bytes_max
        self._items = self._bytes = 0
        self._shares: OrderedDict[str, _Share[T]] = OrderedDict()
        """By tenant, in the order of their turns; only who waits has one."""

    def __len__(self) -> int:
        return self._items

    @property
    def bytes(self) -> int:
        return self._bytes

    def put(self, tenant: str, item: T, size: int) -> None:
        """Behind the other items of its tenant. Raises QueueFull, and then it does not wait."""
        share = self._shares.get(tenant)
        items, held = (len(share.waiting), share.bytes) if share else (0, 0)
        if items >= self._items_max - self._items or held + size > self._bytes_max - self._bytes:
            raise QueueFull(items, held)
        if share is None:
            share = self._shares[tenant] = _Share()
        share.waiting.append((item, size))
        share.bytes += size
        self._items += 1
        self._bytes += size

    def of(self, tenant: str) -> list[T]:
        """What a tenant has waiting, in its order."""
        share = self._shares.get(tenant)
        return [item for item, _ in share.waiting] if share else []

    def discard(self, tenant: str, item: T) -> bool:
        """Whether the item was still waiting; it waits no longer. Costs as much as its tenant has waiting."""
        share = self._shares.get(tenant)
        found = next((entry for entry in share.waiting if entry[0] is item), None) if share else None
        if share is None or found is None:
            return False
        share.waiting.remove(found)
        share.bytes -= found[1]
        self._items -= 1
        self._bytes -= found[1]
        if not share.waiting:
            del self._shares[tenant]
        return True

    def first(self) -> T:
        """Whose turn is next. Raises StopIteration when nobody waits."""
        return next(iter(self._shares.values())).waiting[0][0]

    def tenants(self) -> Iterator[str]:
        """Who waits, in the order of their turns. It ends with the next change."""
        return iter(self._shares)

    def take(self, tenant: str | None = None) -> T:
        """The first item of a tenant, or of the one whose turn is next (`first`), which waits no longer; the tenant's next turn is after those
        of all others."""
        tenant = next(iter(self._shares)) if tenant is None else tenant
        share = self._shares[tenant]
        item, size = share.waiting.popleft()
        share.bytes -= size
        self._items -= 1
        self._bytes -= size
        if share.waiting:
            self._shares.move_to_end(tenant)
        else:
            del self._shares[tenant]
        return item
