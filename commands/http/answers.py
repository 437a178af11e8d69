"""What the command API answers: the facts that a command wrote, the state of an aggregate, or a problem document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel, ConfigDict

from commands.processor.command_processor import Done

JSON = "application/json"


class WrittenFact(BaseModel):
    """A fact that this request wrote."""

    name: str
    event_id: str
    version: int
    position: int


class Accepted(BaseModel):
    """The command happened. More members tell what it made."""

    model_config = ConfigDict(extra="allow")

    facts: list[WrittenFact]


OK: dict[int | str, dict[str, Any]] = {200: {"model": Accepted}}
CREATED: dict[int | str, dict[str, Any]] = {201: {"model": Accepted}}
"""For a route's documentation."""


class ProblemViolation(BaseModel):
    code: str
    message: str
    field: str
    remedy: str


class Problem(BaseModel):
    """RFC 9457, with our code, field, remedy, and every violation at once."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str
    remedy: str
    violations: list[ProblemViolation]


def state_answer(headers: Mapping[str, str], version: int, content: Mapping[str, Any]) -> Response:
    """An aggregate as it is now. The ETag is its version, for If-Match."""
    body = orjson.dumps(content, default=vars)
    return Response(body, 200, {**headers, "ETag": f'"{version}"'}, JSON)


def done_answer(headers: Mapping[str, str], status: int, done: Done, revealed: Mapping[str, Any]) -> Response:
    """What a command made and wrote. `revealed` are members that are not kept with the answer."""
    facts = [{"name": f.name, "event_id": f.event_id, "version": f.version, "position": f.position} for f in done.facts]
    more = {"Idempotent-Replayed": "true"} if done.replayed else {}
    shown = {name: value for name, value in done.body.items() if not name.startswith("_")}
    return Response(orjson.dumps({**shown, **revealed, "facts": facts}), status, {**headers, **more, "ETag": f'"{done.version}"'}, JSON)
