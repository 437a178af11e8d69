"""What topic `schemas` says: the first identity of the log, and the first text of each schema id (K2).

Anybody who can write to the topic can write a record that claims something else. The first one that set-up signed counts, when its own
SHA-256 is that of its text; any other is refused with a reason, and stops nobody. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from events.facts.headers import CE_TYPE
from events.facts.log import LogCreated, SchemaRegistered
from events.log.record import LogRecord
from events.log.signature import is_signed
from events.process.signing_keys import PublicKeys
from events.schema.codec import Codec, Schema, SchemaSet, Undecodable, todays_schemas

FORGED = frozenset({"another_log", "wrong_sha256", "schema_changed", "no_schema", "not_signed"})
"""Codes of records that set-up never writes."""
READ_BEFORE_ANY_SCHEMA = (LogCreated.__name__, SchemaRegistered.__name__)


@dataclass(slots=True)
class RecordedSchemas:
    """A fold of the topic, from its first record on. `keys`: of set-up."""

    keys: PublicKeys
    schemas: SchemaSet = field(default_factory=SchemaSet)
    created: Mapping[str, Any] | None = None
    """Body of the LogCreated that counts."""
    in_order: list[Schema] = field(default_factory=list[Schema])
    """Each (id, subject) once. One id may serve several subjects, with one text."""

    @property
    def log_id(self) -> str | None:
        return None if self.created is None else str(self.created["log_id"])

    def take(self, record: LogRecord) -> Undecodable | None:
        """Learns what the record says; what is wrong with it otherwise, and then nothing is learned. None for a copy, and for records
        without the header of one of the two facts: no process reads those."""
        name = claimed_fact(record)
        if name is None:
            return None
        try:
            check_signature(record, self.keys)
            body = read_claim(name, record.value)
            if name == LogCreated.__name__:
                check_log(body, self.created)
                self.created = self.created or body
            else:
                known = self.schemas.by_id.get(int(body["schema_id"]))
                schema = check_schema(body, self.created, None if known is None else known.definition)
                self._add(schema)
        except Undecodable as e:
            return e
        return None

    def _add(self, schema: Schema) -> None:
        if not any(s.schema_id == schema.schema_id and s.subject == schema.subject for s in self.in_order):
            self.in_order.append(schema)
            self.schemas.add(schema)


def check_signature(record: LogRecord, keys: PublicKeys) -> None:
    """Raises Undecodable unless set-up signed it."""
    if not is_signed(record, keys):
        raise Undecodable("not_signed", "set-up did not sign it")


def claimed_fact(record: LogRecord) -> str | None:
    """Which of the two facts that are read before any schema is known a record claims to be, by its header."""
    name = dict(record.headers).get(CE_TYPE, b"").decode("utf-8", "replace")
    return name if name in READ_BEFORE_ANY_SCHEMA else None


def read_claim(name: str, value: bytes | None) -> dict[str, Any]:
    """The body, read with the class of today, which never changes, whatever id stands before it. Raises Undecodable."""
    subject, schema_id = f"schemas-{name}", int.from_bytes((value or b"")[1:5], "big")
    schemas = SchemaSet()
    schemas.add(Schema.of(schema_id, subject, todays_schemas()[subject]))
    return Codec(schemas).decode(value)[1]


def check_log(body: Mapping[str, Any], created: Mapping[str, Any] | None) -> None:
    """Raises Undecodable when a log was created before, and as another. `created`: anything with the fields of the LogCreated that counts."""
    words = ("log_id", "partitioner", "partitions")
    if created is not None and any(body[w] != created[w] for w in words):
        raise Undecodable("another_log", f"it creates log {body['log_id']}; this log was created before, as {created['log_id']}")


def check_schema(body: Mapping[str, Any], created: Mapping[str, Any] | None, known: str | None) -> Schema:
    """The schema of a SchemaRegistered. Raises Undecodable when it contradicts itself or what was recorded first. `known`: the text that
    its id has already."""
    schema_id, definition = int(body["schema_id"]), str(body["definition"])
    if created is not None and body["log_id"] != created["log_id"]:
        raise Undecodable("another_log", f"it is of log {body['log_id']}; this is log {created['log_id']}")
    if hashlib.sha256(definition.encode()).digest() != body["sha256"]:
        raise Undecodable("wrong_sha256", f"the text under schema id {schema_id} does not have the SHA-256 that its own record names")
    if known is not None and known != definition:
        raise Undecodable("schema_changed", f"schema id {schema_id} was recorded before, with another text")
    try:
        schema = Schema.of(schema_id, str(body["subject"]), definition)
    except Exception as e:  # the parser raises whatever the text provokes
        raise Undecodable("no_schema", f"what schema id {schema_id} names is no schema: {type(e).__name__}: {e}"[:300]) from e
    if not schema.subject.endswith(f"-{schema.name}"):
        raise Undecodable("no_schema", f"schema id {schema_id} is the record {schema.name}, which is not of subject {schema.subject}"[:300])
    return schema
