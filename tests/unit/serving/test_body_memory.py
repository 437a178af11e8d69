"""Nobody fills the room for bodies that others need."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from serving.gateway.body_memory import ALL_BYTES_MAX, TENANT_BYTES_MAX, Held
from serving.refused import Refused


def test_a_tenant_who_holds_its_share_is_refused_and_others_are_not() -> None:
    held, half = Held(), TENANT_BYTES_MAX // 2
    with ExitStack() as greedy:
        for _ in range(2):
            greedy.enter_context(held.body("greedy", half))
        with pytest.raises(Refused, match="your calls") as refused, held.body("greedy", 1):
            pass
        assert refused.value.status == 429
        with held.body("modest", half):
            assert held.bytes == 3 * half
    with held.body("greedy", TENANT_BYTES_MAX):  # there is room again
        assert held.bytes == TENANT_BYTES_MAX
    assert held.bytes == 0


def test_many_tenants_together_are_refused_at_the_bound_of_all() -> None:
    held = Held()
    with ExitStack() as everybody:
        for n in range(ALL_BYTES_MAX // TENANT_BYTES_MAX):
            everybody.enter_context(held.body(f"tenant-{n}", TENANT_BYTES_MAX))
        with pytest.raises(Refused, match="the calls of all"), held.body("one-more", 1):
            pass
    assert held.bytes == 0
