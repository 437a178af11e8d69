"""Who asked, when, and which request led to it. Time and ids are arguments, so that `decide` stays pure."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from commands import PRODUCER
from events.facts.fact import Timestamp, UserId


@dataclass(frozen=True, slots=True)
class CommandContext:
    """`command_id` is a UUID. The event ids of its facts follow from it, so deciding again gives the same ids."""

    command_id: str
    now: Timestamp
    by: UserId
    causation_id: str
    correlation_id: str

    def head(self, version: int) -> dict[str, Any]:
        """The fields that every decided fact begins with; `version` is the aggregate's."""
        return {
            "event_id": str(uuid.uuid5(uuid.UUID(self.command_id), str(version))),
            "occurred_at": self.now,
            "producer": PRODUCER,
            "causation_id": self.causation_id,
            "correlation_id": self.correlation_id,
            "version": version,
        }
