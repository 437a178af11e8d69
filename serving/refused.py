"""A refusal by the gateway: a status, a stable code, the field at fault and what to do."""

from __future__ import annotations

Headers = tuple[tuple[bytes, bytes], ...]


class Refused(Exception):
    """Raised where the reason is found, rendered in one place: `serving.http.refusal_answer`."""

    def __init__(
        self, status: int, code: str, message: str, field: str = "", remedy: str = "", *, headers: Headers = (), **more: object
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


def unavailable(code: str, message: str, after_s: int = 1, remedy: str = "") -> Refused:
    """Not now: 503 with Retry-After. Nothing was executed, or nothing of it is billed."""
    retry = (b"retry-after", str(after_s).encode())
    return Refused(
        503, code, message, "", remedy or f"try again in {after_s} s; with an Idempotency-Key it is billed once", headers=(retry,)
    )
