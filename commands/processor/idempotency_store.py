"""A command that comes twice with one idempotency key happens once: its answer is kept beside its facts, in the same transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from commands.processor.rejection import Rejected, invalid
from commands.store.event_store import ANSWER_EVENT, Event, Store
from events.facts.fact import Timestamp

KEPT_US = 48 * 3600 * 1_000_000
"""How long a key is remembered; 24 hours are promised."""


@dataclass(frozen=True, slots=True)
class RepeatableRequest:
    """`scope` is the caller's tenant: two tenants may use one key. `digest` covers everything that makes two requests the same."""

    scope: str
    key: str
    digest: str

    @property
    def originator(self) -> str:
        return f"answered/{self.scope}/{hashlib.sha256(self.key.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What was answered at `at`, and which of the aggregate's events the command made: versions `first` to `last`; `first` > `last`: none."""

    digest: str
    at: Timestamp
    originator: str
    first: int
    last: int
    body: Mapping[str, Any]

    def to_event(self, request: RepeatableRequest, version: int) -> Event:
        state = {"d": self.digest, "t": self.at, "o": self.originator, "f": self.first, "l": self.last, "b": dict(self.body)}
        return Event(request.originator, version, ANSWER_EVENT, json.dumps(state, separators=(",", ":"), ensure_ascii=False).encode())

    @staticmethod
    def of_event(event: Event) -> KeptAnswer:
        state = json.loads(event.state)
        return KeptAnswer(state["d"], state["t"], state["o"], state["f"], state["l"], state["b"])


class IdempotencyStore:
    """The answers, each an event of its own originator in the event store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, request: RepeatableRequest, now: Timestamp) -> tuple[KeptAnswer | None, int] | Rejected:
        """(the answer already given, or None; the version that a new one would get). Another request under the key is rejected."""
        event = self._store.last_event(request.originator)
        if event is None:
            return None, 1
        answer = KeptAnswer.of_event(event)
        if now - answer.at > KEPT_US:
            return None, event.version + 1
        if answer.digest != request.digest:
            message = "this Idempotency-Key came with another request before"
            return invalid("idempotency_key_reused", message, "Idempotency-Key", "use a new key for each new request")
        return answer, event.version
