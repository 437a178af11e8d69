"""Waiting items are taken from each tenant in turn, and whoever comes next finds room (K28)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.process.fairness.fair_queue import FairQueue, QueueFull

TENANTS = st.sampled_from("abcd")


def fill(queue: FairQueue[int], tenant: str, size: int = 1) -> int:
    """Puts as many items as it takes; how many."""
    for n in range(10_000):
        try:
            queue.put(tenant, n, size)
        except QueueFull:
            return n
    raise AssertionError("it takes any number")


def test_one_tenant_alone_gets_half_of_the_room_and_each_further_one_half_of_the_rest() -> None:
    assert [fill(FairQueue[int](100, 1 << 30), "a")] == [50]
    queue = FairQueue[int](100, 1 << 30)
    assert [fill(queue, tenant) for tenant in "abcd"] == [50, 25, 13, 6]
    bytes_of_it = FairQueue[int](1 << 30, 1000)
    assert [fill(bytes_of_it, tenant, 10) for tenant in "abcd"] == [50, 25, 13, 6]


def test_whoever_is_refused_is_told_what_waits_and_waits_no_longer_for_it() -> None:
    queue = FairQueue[int](4, 100)
    assert fill(queue, "a", 5) == 2
    with pytest.raises(QueueFull) as full:
        queue.put("a", 9, 5)
    assert (full.value.items, full.value.bytes) == (2, 10)
    assert (len(queue), queue.bytes) == (2, 10)
    queue.take()
    queue.put("a", 9, 5)


@given(st.lists(st.one_of(st.tuples(TENANTS, st.integers(0, 9)), st.none()), max_size=200))
def test_items_of_a_tenant_keep_their_order_and_no_tenant_is_passed_over(steps: list[tuple[str, int] | None]) -> None:
    """`None` takes one. Between two items of a tenant that waits all along, each other tenant that waits has had one taken."""
    queue, waiting = FairQueue[tuple[str, int]](1000, 1 << 20), dict[str, list[int]]()
    passed_over: dict[str, int] = {}
    """Of who waits: how many items of others were taken since its last one, or since it came."""
    for number, step in enumerate(steps):
        if step is not None:
            tenant, size = step
            queue.put(tenant, (tenant, number), size)
            waiting.setdefault(tenant, []).append(number)
            passed_over.setdefault(tenant, 0)
        elif waiting:
            first = queue.first()
            tenant, taken = queue.take()
            assert (tenant, taken) == first
            assert waiting[tenant].pop(0) == taken
            assert passed_over.pop(tenant) < 4  # the others are three
            if waiting[tenant]:
                passed_over[tenant] = -1
            else:
                del waiting[tenant]
            passed_over = {other: count + 1 for other, count in passed_over.items()}
        assert len(queue) == sum(map(len, waiting.values()))
    while queue:
        queue.take()
    assert (len(queue), queue.bytes) == (0, 0)
