"""The launcher on real parts: what it starts works, what it stops is gone, and no kill leaves anything in the way."""

from __future__ import annotations

import httpx

from infra.launcher import Stack


def test_the_shared_log_stack_answers(log_stack: Stack) -> None:
    assert log_stack.pid("kafka")
    assert httpx.get(f"{log_stack.settings.registry}/subjects", trust_env=False).status_code == 200
