"""What Ray is made to do differently in its own processes."""

from __future__ import annotations

import pytest

from infra.rayhook import patient


def test_a_node_that_reports_late_is_waited_for() -> None:
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), "node"])

    def ask(name: str) -> str:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return f"{name} {answer}"

    assert patient(ask, 10, 0.001)("this") == "this node"


def test_a_node_that_never_reports_is_an_error() -> None:
    def ask() -> str:
        raise RuntimeError("nobody")

    with pytest.raises(RuntimeError, match="nobody"):
        patient(ask, 0.01, 0.001)()
