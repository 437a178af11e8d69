"""Reads a large JSON body beside the event loop, in pieces: the loop answers others meanwhile (K28).

A thread alone is not enough. One call into the JSON parser or into pydantic keeps the interpreter's lock until it returns, with 15 MB for
0.8 s, and the loop waits for the lock. So the body is parsed one element after another, and long lists are validated a few hundred
elements at a time; FastAPI then validates the whole, and meets elements that are valid already (2 ms). What is left is the garbage
collector, which looks through the objects of 100 000 lines for 0.1 s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

ELEMENT_CHARS_MAX = 1 << 14
"""Of a member of the object that is no list, and of an element of one that is: a bill's line is shorter."""
AT_ONCE = 500
"""Elements validated in one call: about 3 ms."""
Lists = Mapping[str, TypeAdapter[Any]]
"""Of members that are long lists: how so many of its elements are validated."""


class PiecewiseRoute(APIRoute):
    """A route whose body is one JSON object. `lists`: its long ones."""

    lists: Lists = {}

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, lists = super().get_route_handler(), self.lists

        class PiecewiseRequest(Request):
            async def json(self) -> Any:
                return await run_in_threadpool(read_object, await self.body(), lists)

        async def piecewise(request: Request) -> Response:
            return await handle(PiecewiseRequest(request.scope, request.receive))

        return piecewise


def read_object(body: bytes, lists: Lists) -> dict[str, Any]:
    """As `json.loads`, of an object; the elements of `lists` are validated, up to the first piece with a fault in it: what is behind it
    is left out, and FastAPI finds the fault. Raises JSONDecodeError and UnicodeDecodeError."""
    text = body.decode()
    members: dict[str, Any] = {}
    for name, value in _members(text):
        members[name] = _validated(value, lists[name]) if name in lists and isinstance(value, list) else value
    return members


def _validated(elements: list[Any], adapter: TypeAdapter[Any]) -> list[Any]:
    valid: list[Any] = []
    for start in range(0, len(elements), AT_ONCE):
        piece = elements[start : start + AT_ONCE]
        try:
            valid += adapter.validate_python(piece)
        except ValidationError:
            return valid + piece
    return valid


def _members(text: str) -> Iterator[tuple[str, Any]]:
    at = _expect(text, 0, "{")
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            name, at = _element(text, at)
            if not isinstance(name, str):
                raise json.JSONDecodeError("Expecting property name enclosed in double quotes", "", at)
            at = _expect(text, at, ":")
            value, at = _list(text, at) if text[at : at + 1] == "[" else _element(text, at)
            yield name, value
            if text[at : at + 1] != ",":
                break
            at = _expect(text, at, ",")
        at = _expect(text, at, "}")
    if _skip(text, at) != len(text):
        raise json.JSONDecodeError("Extra data", "", at)


def _list(text: str, at: int) -> tuple[list[Any], int]:
    elements: list[Any] = []
    at = _expect(text, at, "[")
    while text[at : at + 1] != "]":
        if elements:
            at = _expect(text, at, ",")
        element, at = _element(text, at)
        elements.append(element)
    return elements, _skip(text, at + 1)


def _element(text: str, at: int) -> tuple[Any, int]:
    """The value at a place, and where the next token begins. Only so much is read as one may be long: a longer one is malformed."""
    try:
        value, end = _DECODER.raw_decode(text[at : at + ELEMENT_CHARS_MAX])
    except json.JSONDecodeError as e:
        raise json.JSONDecodeError(f"{e.msg}, or more than {ELEMENT_CHARS_MAX} characters", "", at + e.pos) from e
    return value, _skip(text, at + end)


def _expect(text: str, at: int, token: str) -> int:
    """Where the token after this one begins."""
    at = _skip(text, at)
    if text[at : at + 1] != token:
        raise json.JSONDecodeError(f"Expecting '{token}'", "", at)
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


_DECODER, _SPACE = json.JSONDecoder(), re.compile(r"[ \t\n\r]*")
