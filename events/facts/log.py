"""What the log says of itself: its identity, its schemas, its stores, and what nobody could read."""

from __future__ import annotations

from events.facts.fact import Count, DecidedFact, Fact, Sha256, UserId


class LogCreated(Fact):
    """This cluster is the log `log_id`; these were its topics and partition counts, which never change (K1). Topic `schemas`."""

    log_id: str
    partitioner: str
    partitions: dict[str, int]


class SchemaRegistered(Fact):
    """From now on records may carry `schema_id`; this is how to read them, without the registry (K2). Topic `schemas`.
    This class itself never changes: it is read before any schema is known."""

    log_id: str
    schema_id: Count
    subject: str
    sha256: Sha256
    definition: str


class StoreOpened(DecidedFact):
    """Decided facts come from the store `store` from here on. Written to every partition of every decided topic, so that
    each fold sees the change of epoch in its own chain (K4)."""

    store: str
    previous_store: str
    previous_position: Count
    by: UserId


class DeadLettered(Fact):
    """A record that could not be read, kept whole, with its coordinate and the reason. It can be driven again."""

    topic: str
    partition: Count
    offset: Count
    code: str
    reason: str
    reader: str
    key: bytes
    value: bytes
    value_sha256: Sha256
