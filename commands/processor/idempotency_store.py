"""A command that comes twice with one idempotency key happens once: the answer is kept beside the facts, in the same transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from commands.processor.rejection import Rejected, invalid
from commands.store.event_store import Event, Store
from events.facts.fact import Timestamp

ANSWERED = "CommandAnswered"
"""The event name of a kept answer. It is no fact: the relay passes it over."""
KEPT_US = 48 * 3600 * 1_000_000
"""How long a key is remembered (24 h is the promise)."""


@dataclass(frozen=True, slots=True)
class Request:
    """`scope` is the caller's tenant: two tenants may use one key. `digest` covers everything that makes the request what it is."""

    scope: str
    key: str
    digest: str

    @property
    def originator(self) -> str:
        return f"answered/{self.scope}/{hashlib.sha256(self.key.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and which of the aggregate's events it made (`first` > `last`: none)."""

    digest: str
    at: Timestamp
    originator: str
    first: int
    last: int
    body: Mapping[str, Any]

    def to_event(self, request: Request, version: int) -> Event:
        state = {"d": self.digest, "t": self.at, "o": self.originator, "f": self.first, "l": self.last, "b": dict(self.body)}
        return Event(request.originator, version, ANSWERED, json.dumps(state, separators=(",", ":"), ensure_ascii=False).encode())


class IdempotencyStore:
    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, request: Request, now: Timestamp) -> tuple[Answer | None, int] | Rejected:
        """(the answer already given, or None; the version a new one would get). Another request under the key is refused."""
        event = self._store.last_event(request.originator)
        return self.judge(event, request, now)

    @staticmethod
    def judge(event: Event | None, request: Request, now: Timestamp) -> tuple[Answer | None, int] | Rejected:
        if event is None:
            return None, 1
        answer = answer_of(event)
        if now - answer.at > KEPT_US:
            return None, event.version + 1
        if answer.digest != request.digest:
            message = "this Idempotency-Key came with another request before"
            return invalid("idempotency_key_reused", message, "Idempotency-Key", "use a new key for each new request")
        return answer, event.version


def answer_of(event: Event) -> Answer:
    state = json.loads(event.state)
    return Answer(state["d"], state["t"], state["o"], state["f"], state["l"], state["b"])
