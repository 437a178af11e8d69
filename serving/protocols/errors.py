"""What a refusal's member `error` is, where the clients of a protocol look for something else than the message."""

from __future__ import annotations

from collections.abc import Callable

from serving.protocols.openai.operations import error_object
from serving.refused import Refused

ERRORS: dict[str, Callable[[Refused], object]] = {"v1": error_object}
"""By the first segment of the path."""


def protocol_error(path: str, refused: Refused) -> object:
    """None where it is the message."""
    error = ERRORS.get(path.lstrip("/").partition("/")[0])
    return error(refused) if error else None
