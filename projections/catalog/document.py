"""A document: plain JSON about the key of a topic. Instants are µs UTC, hashes hex. Never changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]
Body = Mapping[str, Any]


def plain(value: Any) -> Any:
    """A decoded body as JSON can hold it: bytes become hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def put(document: Document, *path: str, **changes: Any) -> Document:
    """A copy in which the object at `path` (made where missing) has these members."""
    if not path:
        return {**document, **changes}
    first, *rest = path
    return {**document, first: put(document.get(first) or {}, *rest, **changes)}


def pick(body: Body, *names: str) -> Document:
    return {name: plain(body[name]) for name in names}
