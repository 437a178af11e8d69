"""A codec of today's schemas, for tests without a log."""

from __future__ import annotations

from events.schema.codec import Codec, Schema, SchemaSet, todays_schemas

SCHEMA_ID_MIN = 100
"""No index into anything: a test that mixes them up fails."""


def todays_schema_set() -> SchemaSet:
    schemas = SchemaSet()
    for schema_id, (subject, definition) in enumerate(sorted(todays_schemas().items()), start=SCHEMA_ID_MIN):
        schemas.add(Schema.of(schema_id, subject, definition))
    return schemas


def todays_codec() -> Codec:
    return Codec(todays_schema_set())
