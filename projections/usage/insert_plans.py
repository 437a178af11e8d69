"""How to read each schema id found on topic `usage`: from the log itself, never from the registry (K2)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from events.log.client import Reader
from events.log.schemas import read_schemas
from events.schema.codec import HEADER_BYTES, MAGIC, Schema, SchemaSet, Undecodable
from projections.ingest import avro_container as container
from projections.usage.table import Insert, UnsuitableSchema, insert_for
from projections.usage.validator import SUBJECTS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InsertPlan:
    """Into the table for records of one schema id."""

    schema: Schema
    insert: Insert
    extended: bytes


class InsertPlans:
    """`plan(head)` by the first five bytes of a value. An id that is not known yet is looked for on the log, once a batch."""

    def __init__(self, reader: Reader, schemas: SchemaSet | None = None) -> None:
        self._reader, self._schemas = reader, schemas or SchemaSet()
        self._plans: dict[bytes, InsertPlan | Undecodable] = {}

    def plans(self, heads: set[bytes]) -> dict[bytes, InsertPlan | Undecodable]:
        """For each head how to insert it, or why it cannot be read. Raises LogUnavailable: then nothing is known."""
        unknown = {h for h in heads if h not in self._plans and len(h) == HEADER_BYTES and h[0] == MAGIC}
        if any(_id(h) not in self._schemas.by_id for h in unknown):
            # Before an id is first used it is recorded: a topic read to its end after the record came has it.
            self._schemas, _ = read_schemas(self._reader)
        found: dict[bytes, InsertPlan | Undecodable] = {}
        for head in heads:
            plan = self._plans.get(head) or self._plan(head)
            if isinstance(plan, InsertPlan):
                self._plans[head] = plan  # refusals are not remembered: other programs decide how many there are
            found[head] = plan
        return found

    def _plan(self, head: bytes) -> InsertPlan | Undecodable:
        if len(head) < HEADER_BYTES or head[0] != MAGIC:
            return Undecodable("not_framed", "the value does not start with 00 and a schema id")
        schema = self._schemas.by_id.get(_id(head))
        if schema is None:
            return Undecodable("unknown_schema", f"schema id {_id(head)} is not on the log")
        if not schema.subject.startswith(SUBJECTS):
            return Undecodable("wrong_subject", f"schema id {schema.schema_id} is {schema.subject}, which is no usage fact")
        try:
            return InsertPlan(schema, insert_for(schema.schema_id, schema.definition), container.extended(schema.definition).encode())
        except UnsuitableSchema as e:
            return Undecodable("unsuitable_schema", f"{schema.subject} as id {schema.schema_id}: {e}")


def _id(head: bytes) -> int:
    return int.from_bytes(head[1:HEADER_BYTES], "big")
