"""A command that comes twice with one idempotency key happens once: its answer is kept beside its facts, in the same transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from commands.processor.rejection import Rejected, invalid
from commands.store.event_store import Answer, Store
from events.facts.fact import Timestamp

KEPT_US = 48 * 3600 * 1_000_000
"""How long an answer is kept; 24 hours are promised."""


@dataclass(frozen=True, slots=True)
class RepeatableRequest:
    """`scope` is the caller's tenant: two tenants may use one key. `digest` covers everything that makes two requests the same."""

    scope: str
    key: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.scope}/{hashlib.sha256(self.key.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What was answered at `at`, and which of the aggregate's events the command made: versions `first` to `last`; `first` > `last`: none."""

    digest: str
    at: Timestamp
    originator: str
    first: int
    last: int
    body: Mapping[str, Any]

    def stored(self, request: RepeatableRequest) -> Answer:
        state = {"d": self.digest, "o": self.originator, "f": self.first, "l": self.last, "b": dict(self.body)}
        encoded = json.dumps(state, separators=(",", ":"), ensure_ascii=False).encode()
        return Answer(request.name, self.at, self.at - KEPT_US, encoded)

    @staticmethod
    def of_stored(at: Timestamp, encoded: bytes) -> KeptAnswer:
        state = json.loads(encoded)
        return KeptAnswer(state["d"], at, state["o"], state["f"], state["l"], state["b"])


class IdempotencyStore:
    """The answers, in a table of the event store. What is expired is deleted with new ones: there are as many as two days have."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, request: RepeatableRequest, now: Timestamp) -> KeptAnswer | Rejected | None:
        """The answer already given, or None. Another request under the key is rejected."""
        stored = self._store.answer(request.name)
        if stored is None or now - stored[0] > KEPT_US:
            return None
        answer = KeptAnswer.of_stored(*stored)
        if answer.digest != request.digest:
            message = "this Idempotency-Key came with another request before"
            return invalid("idempotency_key_reused", message, "Idempotency-Key", "use a new key for each new request")
        return answer
