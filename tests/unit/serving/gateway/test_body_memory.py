"""The memory for request bodies is bounded per tenant and in total."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from serving.gateway.bodies.body_memory import ALL_BYTES_MAX, TENANT_BYTES_MAX, BodyMemoryLimiter
from serving.refused import Refused


def test_a_tenant_who_holds_its_share_is_refused_and_others_are_not() -> None:
    limiter, half = BodyMemoryLimiter(), TENANT_BYTES_MAX // 2
    with ExitStack() as greedy:
        for _ in range(2):
            greedy.enter_context(limiter.reserve("greedy", half))
        with pytest.raises(Refused, match="your calls") as refused, limiter.reserve("greedy", 1):
            pass
        assert refused.value.status == 429
        with limiter.reserve("modest", half):
            assert limiter.bytes == 3 * half
    with limiter.reserve("greedy", TENANT_BYTES_MAX):  # there is room again
        assert limiter.bytes == TENANT_BYTES_MAX
    assert limiter.bytes == 0


def test_many_tenants_together_are_refused_at_the_bound_of_all() -> None:
    limiter = BodyMemoryLimiter()
    with ExitStack() as everybody:
        for n in range(ALL_BYTES_MAX // TENANT_BYTES_MAX):
            everybody.enter_context(limiter.reserve(f"tenant-{n}", TENANT_BYTES_MAX))
        with pytest.raises(Refused, match="the calls of all"), limiter.reserve("one-more", 1):
            pass
    assert limiter.bytes == 0
