"""Schemas: published once by set-up, known to the log for ever, checked by every process at start (K2). The only file that imports the registry client.

Subject = `<topic>-<record name>` (TopicRecordNameStrategy), compatibility BACKWARD_TRANSITIVE. The log, not the registry, is
the truth: topic `schemas` holds every id with its text, so a log decodes even when the registry has been wiped.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from events.facts.headers import headers_of
from events.facts.log import LogCreated, SchemaRegistered
from events.facts.topics import TOPICS, key_of
from events.log.client import PARTITIONER, LogMismatch, LogUnavailable, Reader, Writer
from events.log.record import Coordinate
from events.log.recorded_schemas import RecordedSchemas
from events.log.signature import signed_headers
from events.log.topic_admin import check_partitions
from events.process.clock import now_us
from events.process.ids import new_id
from events.process.settings import Settings
from events.process.signing_keys import KeyMissing, PublicKeys, SigningKey, mint_keys, public_keys, signing_key
from events.schema.codec import Codec, Schema, SchemaSet, Undecodable, frame_schema_id, todays_schemas
from events.schema.registry import RegistryUnavailable, SchemaRegistry

logger = logging.getLogger(__name__)
REGISTRY_S_MAX = 120.0
"""How long a process waits for the registry at start before it gives its supervisor a chance."""
ASKED_MAX = 10_000
"""Unknown schema ids remembered: their number is bounded, since any program can send some."""


# --- what set-up does


def publish(settings: Settings, writer: Writer, reader: Reader) -> list[str]:
    """Registers today's schemas and records every new id on the log; returns the subjects that were new. Safe to repeat.
    Raises LogMismatch when this process was not given the key of set-up."""
    signed_by, registry, recorded = _own_key(settings), SchemaRegistry(settings), _read(reader)
    schemas, log_id = recorded.schemas, recorded.log_id
    registry.require_compatibility()
    todays = todays_schemas()
    on_log = {(s.schema_id, s.subject): s for s in (*schemas.by_id.values(), *schemas.current.values())}
    for _, known in sorted(on_log.items()):
        compare(registry, known)
    codec_schemas = SchemaSet()
    for subject, definition in todays.items():
        schema_id = schemas.current[subject].schema_id if subject in schemas.current else registry.register(subject, definition)
        known = schemas.by_id.get(schema_id)
        if known is not None and known.definition != definition:
            raise LogMismatch(
                f"the registry gives {subject} the id {schema_id}, which is {known.subject} on the log: this is not this log's registry"
            )
        codec_schemas.add(Schema.of(schema_id, subject, definition))
    codec, new = Codec(codec_schemas), [s for s in todays if s not in schemas.current]
    if log_id is None:
        log_id = str(uuid.uuid4())
        partitions = {t.name: t.partitions for t in TOPICS.values()}
        created = LogCreated(
            event_id=new_id(), occurred_at=now_us(), producer="prepare", log_id=log_id, partitioner=PARTITIONER, partitions=partitions
        )
        append_signed(writer, codec, signed_by, created)
    for subject in new:
        schema = codec_schemas.current[subject]
        fact = SchemaRegistered(
            event_id=new_id(),
            occurred_at=now_us(),
            producer="prepare",
            log_id=log_id,
            schema_id=schema.schema_id,
            subject=subject,
            sha256=schema.sha256,
            definition=schema.definition,
        )
        append_signed(writer, codec, signed_by, fact)
    if not writer.flush(30):
        raise LogUnavailable("Kafka did not acknowledge the schemas within 30 s")
    return new


def _own_key(settings: Settings) -> SigningKey:
    mint_keys(settings)
    try:
        return signing_key(settings, "setup")
    except KeyMissing as e:
        raise LogMismatch(str(e)) from e


def append_signed(writer: Writer, codec: Codec, signed_by: SigningKey, fact: LogCreated | SchemaRegistered) -> Future[Coordinate]:
    """What set-up says of the log. A record without its signature is ignored."""
    key, value = key_of(fact), codec.encode(fact)
    return writer.append("schemas", key, value, {**headers_of(fact), **signed_headers(signed_by, "schemas", key, value)})


# --- what every process does at start


def open_codec(settings: Settings, reader: Reader) -> tuple[Codec, str]:
    """(codec, log_id) of the log at hand. Waits for the registry; raises LogMismatch when it contradicts the log."""
    check_partitions(settings)
    schemas, log_id = read_schemas(reader)
    if log_id is None:
        raise LogMismatch("topic schemas is empty: this log was never prepared; run `modelmarket schemas publish`")
    registry, end = SchemaRegistry(settings), time.monotonic() + REGISTRY_S_MAX
    while True:
        try:
            for schema in schemas.by_id.values():
                compare(registry, schema)
            return LogCodec(settings, schemas), log_id
        except RegistryUnavailable as e:
            if time.monotonic() > end:
                raise
            logger.warning("the registry does not answer, waiting: %s", e)
            time.sleep(0.5)


class LogCodec(Codec):
    """A codec that looks on the log for an id it does not know, once per id: a newer program may have recorded it since this one began.
    Before an id is first used it is recorded, so either the log has it by then, or no process of ours made it."""

    def __init__(self, settings: Settings, schemas: SchemaSet) -> None:
        super().__init__(schemas)
        self._settings, self._asked, self._looking = settings, set[int](), threading.Lock()

    def decode_raw(self, value: bytes | None) -> tuple[Schema, dict[str, Any]]:
        try:
            return super().decode_raw(value)
        except Undecodable as e:
            if e.code != "unknown_schema" or not self._found(frame_schema_id(value)):
                raise
        return super().decode_raw(value)

    def _found(self, schema_id: int) -> bool:
        """Raises LogUnavailable: then nothing is known."""
        with self._looking:
            if schema_id in self.schemas.by_id:
                return True
            if schema_id in self._asked:
                return False
            reader = Reader(self._settings, "schemas-again")
            try:
                found, _ = read_schemas(reader)
            finally:
                reader.close()
            for schema in found.by_id.values():
                self.schemas.add(schema)
            if len(self._asked) >= ASKED_MAX:
                self._asked.clear()
            self._asked.add(schema_id)
            return schema_id in self.schemas.by_id


def read_schemas(reader: Reader) -> tuple[SchemaSet, str | None]:
    """Every schema on the log and the log's id, from Kafka alone. Raises LogMismatch when the log was made for other topics."""
    recorded = _read(reader)
    return recorded.schemas, recorded.log_id


def schemas_on_log(reader: Reader) -> list[Schema]:
    """Every (id, subject) that was ever recorded, once, in the order of the log. One id may serve several subjects."""
    return _read(reader).in_order


def _read(reader: Reader) -> RecordedSchemas:
    recorded = RecordedSchemas(setup_keys(reader.settings))
    refused = [(record, why) for record in reader.read("schemas") if (why := recorded.take(record)) is not None]
    if refused:
        logger.warning("%d records are passed over, the first at %s: %s", len(refused), refused[0][0].coordinate, refused[0][1])
    created = recorded.created
    if created is not None and (
        created["partitions"] != {t.name: t.partitions for t in TOPICS.values()} or created["partitioner"] != PARTITIONER
    ):
        raise LogMismatch(f"log {created['log_id']} was created with {created['partitions']} and {created['partitioner']}")
    return recorded


def setup_keys(settings: Settings) -> PublicKeys:
    """Raises LogMismatch when this process knows none."""
    try:
        return public_keys(settings, "setup")
    except KeyMissing as e:
        raise LogMismatch(str(e)) from e


def compare(registry: SchemaRegistry, schema: Schema) -> None:
    """Raises LogMismatch unless the registry has this schema under this id."""
    there = registry.schema(schema.subject, schema.schema_id)
    if there is None or json.loads(there) != json.loads(schema.definition):
        was = "does not know it" if there is None else "has another schema under it"
        raise LogMismatch(
            f"schema id {schema.schema_id} ({schema.subject}) is on the log but the registry {was}: this is not this log's registry"
        )


def registry_drift(registry: SchemaRegistry, recorded: Sequence[Schema]) -> list[str]:
    """Each difference between the registry and the log's schemas, as a sentence: every id, under every subject, and no other."""
    by_subject, drift = defaultdict[str, dict[int, Schema]](dict), list[str]()
    for schema in recorded:
        by_subject[schema.subject][schema.schema_id] = schema
    for subject, schemas in sorted(by_subject.items()):
        there = registry.ids(subject)
        drift += [
            f"{subject}: the log has id {i}, the registry does not: docs/operations.md, 'Log and registry do not belong together'"
            for i in schemas.keys() - there
        ]
        drift += [
            f"{subject}: the registry has id {i}, the log does not: what is written with it cannot be read here; its program must publish it"
            for i in there - schemas.keys()
        ]
        for schema_id in schemas.keys() & there:
            try:
                compare(registry, schemas[schema_id])
            except LogMismatch as e:
                drift.append(f"{subject}: {e}")
    return drift
