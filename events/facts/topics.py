"""Which fact goes to which topic, and what each topic promises: one table, read by everything that touches the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from events.facts import accounts, alerts, bills, deployments, log, models, prices, producers, usage, write_offs
from events.facts.fact import Fact

FOREVER_MS = -1
DAY_MS = 86_400_000

TopicKind = Literal["decided", "observed", "both"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic's promises. `partitions` never changes (K1): growth is a new topic."""

    name: str
    partitions: int
    retention_ms: int
    kind: TopicKind
    owner: str
    """The room that writes it."""
    key: str
    """What the record key names, in a word."""


@dataclass(frozen=True, slots=True)
class FactEntry:
    """Where a fact class lives. `key` is the field that becomes the record key."""

    cls: type[Fact]
    topic: str
    key: str

    @property
    def name(self) -> str:
        return self.cls.__name__

    @property
    def subject(self) -> str:
        return f"{self.topic}-{self.name}"


DECIDED_TOPICS = ("models", "deployments", "accounts", "prices", "bills", "producers")

TOPICS: dict[str, Topic] = {
    t.name: t
    for t in (
        Topic("models", 4, FOREVER_MS, "decided", "commands", "model"),
        Topic("deployments", 4, FOREVER_MS, "both", "commands, serving", "model"),
        Topic("accounts", 4, FOREVER_MS, "decided", "commands", "tenant"),
        Topic("prices", 1, FOREVER_MS, "decided", "commands", "book"),
        Topic("bills", 4, FOREVER_MS, "decided", "commands", "tenant, record, or record set"),
        # Deleted only behind archived, checkpointed offsets (K1); until there is an archive that means never.
        Topic("usage", 4, FOREVER_MS, "observed", "serving", "tenant"),
        Topic("producers", 1, FOREVER_MS, "both", "serving, commands", "producer"),
        Topic("alerts", 1, FOREVER_MS, "observed", "every room", "subject"),
        Topic("schemas", 1, FOREVER_MS, "observed", "events", "schema id"),
        # JSON, not facts: nothing is ever folded from them (K5).
        Topic("heartbeats", 1, DAY_MS, "observed", "commands", "store"),
        Topic("dead-letters", 1, FOREVER_MS, "observed", "projections", "source coordinate"),
    )
}

_ENTRIES: tuple[FactEntry, ...] = (
    *(
        FactEntry(cls, "models", "model")
        for cls in (
            models.ModelRegistered,
            models.ModelVersionAdded,
            models.ModelVersionSubmitted,
            models.ModelVersionReviewed,
            models.ModelVersionApproved,
            models.ModelRetired,
        )
    ),
    *(
        FactEntry(cls, "deployments", "model")
        for cls in (
            deployments.VersionDeployed,
            deployments.RolloutStarted,
            deployments.RolloutAdvanced,
            deployments.RolloutPromoted,
            deployments.RolledBack,
            deployments.VersionUndeployed,
            deployments.VersionReady,
            deployments.VersionFailed,
            deployments.RouteApplied,
        )
    ),
    *(
        FactEntry(cls, "accounts", "tenant")
        for cls in (accounts.TenantCreated, accounts.ApiKeyIssued, accounts.ApiKeyRevoked, accounts.TenantQuotaSet)
    ),
    FactEntry(prices.PriceBookPublished, "prices", "book"),
    *(
        FactEntry(cls, "usage", "tenant")
        for cls in (
            usage.InvocationSettled,
            usage.InvocationOpened,
            usage.InvocationAbandoned,
            usage.InvocationVoided,
            usage.InvocationRefused,
        )
    ),
    *(
        FactEntry(cls, "producers", "producer")
        for cls in (
            producers.ProducerOpened,
            producers.ProducerClosed,
            producers.ProducerWriteOffRequested,
            producers.ProducerWrittenOff,
        )
    ),
    *(FactEntry(cls, "bills", "tenant") for cls in (bills.BillCutFixed, bills.BillLinesListed, bills.BillIssued)),
    *(FactEntry(cls, "bills", "record") for cls in (write_offs.RecordWriteOffRequested, write_offs.RecordWrittenOff)),
    *(FactEntry(cls, "bills", "record_set") for cls in (write_offs.RecordSetDecisionRequested, write_offs.RecordSetDecided)),
    *(FactEntry(cls, "alerts", "subject") for cls in (alerts.AlertRaised, alerts.AlertResolved)),
    FactEntry(log.LogCreated, "schemas", "log_id"),
    FactEntry(log.SchemaRegistered, "schemas", "schema_id"),
    *(FactEntry(log.StoreOpened, topic, "store") for topic in DECIDED_TOPICS),
    FactEntry(log.DeadLettered, "dead-letters", "topic"),
)

FACTS: dict[str, FactEntry] = {e.name: e for e in _ENTRIES if e.cls is not log.StoreOpened}
"""By class name; `StoreOpened` lives on every decided topic and is found by `entries()`."""


def entries() -> Iterator[FactEntry]:
    """Every (fact, topic) pair: one subject of the registry each."""
    yield from _ENTRIES


def entry_of(fact: Fact) -> FactEntry:
    return FACTS[type(fact).__name__]


def key_of(fact: Fact) -> bytes:
    """The record key of a fact: what orders it with its own kind."""
    return str(getattr(fact, entry_of(fact).key)).encode()
