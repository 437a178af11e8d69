"""An answer that is a refusal (RFC 9457): raised where the reason is found, written by the application in one place."""

from __future__ import annotations

from collections.abc import Mapping

from access.codes import Refusal
from events.process.problem import Violation


class Problem(Exception):
    """`headers` go with the answer."""

    def __init__(self, status: int, violation: Violation, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(violation.message)
        self.status, self.violation, self.headers = status, violation, headers or {}


def invalid(code: str, message: str, field: str, remedy: str) -> Problem:
    """422: the question cannot be answered as it was put."""
    return Problem(422, Violation(code, message, field, remedy))


def access_problem(refusal: Refusal) -> Problem:
    """A refusal of access as the query API answers it."""
    return Problem(refusal.status, refusal.violation, refusal.headers)
