"""OpenAI's `GET /v1/models`, with the caller's prices in force now as `pricing`, and its error object, the one place where its clients look.

Source: the `openai` package for Python, 3.54.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from serving.protocols.operations import ListedModel, ListModels, Operation
from serving.refused import Refused

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""By status; below 500 any other is `invalid_request_error`, from there on `server_error`."""


def operation(segments: list[str]) -> Operation | None:
    """The operation at a path below /v1; None when nothing is there."""
    return ListModels(list_part, list_entry, model_list) if segments == ["models"] else None


def list_part(model: ListedModel) -> bytes:
    fields = {"id": model.model, "object": "model", "created": model.registered_at_s, "owned_by": model.provider}
    return b"," + orjson.dumps(fields)[:-1] + b',"pricing":'


def list_entry(part: bytes, pricing: bytes | None) -> bytes:
    return part + (pricing or b"null") + b"}"


def model_list(entries: Sequence[bytes]) -> bytes:
    """Joined at once: it may have megabytes. Each entry brings the comma before it."""
    if not entries:
        return b'{"object":"list","data":[]}'
    return b"".join((b'{"object":"list","data":[', entries[0][1:], *entries[1:], b"]}"))


def error_object(refused: Refused) -> dict[str, str | None]:
    """What the client shows of a refusal is `message`, so it says what to do as well."""
    message = f"{refused.message}; what to do: {refused.remedy}" if refused.remedy else refused.message
    kind = ERROR_TYPES.get(refused.status, "server_error" if refused.status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "code": refused.code, "param": refused.field or None}
