"""What the command API answers: the facts that a command wrote, the state of an aggregate, or a problem document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel, Field

from commands.processor.command_processor import Done

JSON = "application/json"


class WrittenFact(BaseModel):
    """A fact that this request wrote."""

    name: str
    event_id: str
    version: int = Field(description="Of its aggregate, from 1.")
    position: int = Field(description="In the order of all decisions.")


class Accepted(BaseModel):
    """The command happened. Its own kind of answer has more members."""

    facts: list[WrittenFact]


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
