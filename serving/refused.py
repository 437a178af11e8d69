"""What a caller is told when the gateway says no: a status, a stable code, the field at fault and what to do."""

from __future__ import annotations

import orjson

from events.process.problem import PROBLEM_JSON, Violation, problem

Headers = tuple[tuple[bytes, bytes], ...]


class Refused(Exception):
    """No answer, and why. Raised where the reason is found, rendered in one place."""

    def __init__(
        self, status: int, code: str, message: str, field: str = "", remedy: str = "", headers: Headers = (), **more: object
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.remedy = remedy
        self.headers = headers
        self.more = more


def bad(code: str, message: str, field: str = "", remedy: str = "") -> Refused:
    """The request is not right: 400."""
    return Refused(400, code, message, field, remedy or "GET /v2/models/{model} tells which inputs and outputs it has")


def later(code: str, message: str, after_s: int = 1, remedy: str = "") -> Refused:
    """Not now: 503 with Retry-After. Nothing was executed, or nothing of it is billed."""
    retry = (b"retry-after", str(after_s).encode())
    return Refused(503, code, message, "", remedy or f"try again in {after_s} s; with an Idempotency-Key it is billed once", (retry,))


def document(refused: Refused) -> tuple[bytes, Headers]:
    """The body and headers of a refusal. `error` repeats the message where Open Inference Protocol clients look for it."""
    violation = Violation(refused.code, refused.message, refused.field, refused.remedy)
    body = orjson.dumps(problem(refused.status, [violation]) | {"error": refused.message, **refused.more})
    return body, ((b"content-type", PROBLEM_JSON.encode()), *refused.headers)
