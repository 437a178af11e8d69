"""Whether an API key belonged to its tenant when a call began (K13)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rating.rules import EARLY_US_MAX, effective_us

GRACE_US = EARLY_US_MAX
"""A gateway goes on for `staleness_s_max` with keys that it cannot check (K5), and clocks differ: five minutes cover both."""


@dataclass(slots=True)
class KeyTerm:
    """From when to when a key works, µs UTC. `over_us` is None while it does."""

    issued_us: int
    over_us: int | None

    def covers(self, began_us: int) -> bool:
        return self.issued_us - GRACE_US <= began_us and (self.over_us is None or began_us <= self.over_us + GRACE_US)


def key_terms(facts: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, KeyTerm]:
    """key_id → term, of one tenant's decided facts (name, body) in their order."""
    terms: dict[str, KeyTerm] = {}
    for name, body in facts:
        add_to_terms(terms, name, body)
    return terms


def add_to_terms(terms: dict[str, KeyTerm], name: str, body: Mapping[str, Any]) -> None:
    """As `key_terms`, one fact more."""
    match name:
        case "ApiKeyIssued":
            terms[body["key_id"]] = KeyTerm(body["occurred_at"], body["expires_at"])
        case "ApiKeyRevoked" if body["key_id"] in terms:
            term = terms[body["key_id"]]
            term.over_us = min(body["occurred_at"], term.over_us if term.over_us is not None else body["occurred_at"])
        case _:
            pass


def began_us(body: Mapping[str, Any], append_us: int) -> int:
    """When the call of an `InvocationSettled` came in, by the time that it is billed by."""
    return effective_us(body["occurred_at"], append_us) - body["latency_us"]
