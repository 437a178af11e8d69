"""Plain HTTP values that the gateway and its protocols share: headers and answers."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from events.process.problem import PROBLEM_JSON, Violation, problem
from serving.refused import Headers, Refused, bad

JSON: Headers = ((b"content-type", b"application/json"),)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the caller."""

    status: int
    headers: Headers
    body: bytes


def refusal_answer(refused: Refused, error: object = None) -> Answer:
    """The problem document (RFC 9457) of a refusal. `error` is its member of that name, where the clients of a protocol look: the message
    if nothing else is given, as the Open Inference Protocol has it."""
    violation = Violation(refused.code, refused.message, refused.field, refused.remedy)
    body = orjson.dumps(problem(refused.status, [violation]) | {"error": refused.message if error is None else error, **refused.more})
    return Answer(refused.status, ((b"content-type", PROBLEM_JSON.encode()), *refused.headers), body)


def whole_number(headers: dict[bytes, bytes], name: str) -> int | None:
    """The value of a header; None when it is absent. Raises Refused (400)."""
    value = headers.get(name.lower().encode())
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise bad("invalid_header", f"{name} must be a whole number", name)
    return int(value)
