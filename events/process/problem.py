"""What was wrong, where, and what to do: one shape of refusal for API, command line and console (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

_KNOWN = frozenset(HTTPStatus)
PROBLEM_JSON = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong. `field` is a JSON pointer-like path, empty for the whole; `code` is stable and documented."""

    code: str
    message: str
    field: str = ""
    remedy: str = ""


def problem(status: int, violations: Sequence[Violation], *, instance: str = "", **more: Any) -> dict[str, Any]:
    """The problem document: the first violation speaks for all, `violations` has each. `more` are extension members."""
    first = violations[0]
    body: dict[str, Any] = {
        "type": f"urn:modelmarket:problem:{first.code}",
        "title": _title(status),
        "status": status,
        "detail": first.message,
        "code": first.code,
        "field": first.field,
        "remedy": first.remedy,
        "violations": [asdict(v) for v in violations],
    }
    if instance:
        body["instance"] = instance
    return body | more


def _title(status: int) -> str:
    return HTTPStatus(status).phrase if status in _KNOWN else f"Status {status}"
