"""A fact as bytes and back: one Confluent frame, `00` + schema id (4 bytes, big endian) + Avro body.

Source: Confluent wire format; Apache Avro 1.12. Logical types are annotations for other readers: here an instant stays an
integer and an id a string, which is also three times faster than datetime and UUID objects.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import fastavro

from events.facts.fact import Fact
from events.facts.topics import FACTS, entries
from events.schema import derivation as avro

MAGIC = 0
HEADER_BYTES = 5
FRAME_BYTES_MAX = 512 * 1024
"""A fact is at most this large (K3); larger bodies are artifacts, named by digest."""


class Undecodable(Exception):
    """These bytes are no record of ours. `code` is stable and goes on the dead letter."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class FrameTooLarge(Exception):
    """A fact would not fit on the log; the command that made it must be refused."""


class UnknownSubject(Exception):
    """This fact has no schema id on this log: `modelmarket schemas publish` was not run for this code."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A writer's schema as the log records it."""

    schema_id: int
    subject: str
    name: str
    definition: str
    parsed: Any

    @classmethod
    def of(cls, schema_id: int, subject: str, definition: str) -> Schema:
        loaded = cast(dict[str, Any], json.loads(definition))
        parsed = cast(dict[str, Any], fastavro.parse_schema(_plain(loaded)))
        for f in parsed["fields"]:  # Avro writes a default of bytes as text; fastavro would write that text
            if isinstance(f.get("default"), str) and f["type"] != "string":
                f["default"] = f["default"].encode("latin-1")
        return cls(schema_id, subject, str(loaded["name"]), definition, parsed)

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.definition.encode()).digest()


@dataclass(slots=True)
class SchemaSet:
    """Every schema ever used on a log, by id, and the ids that today's classes write with (K2)."""

    by_id: dict[int, Schema] = field(default_factory=dict[int, Schema])
    current: dict[str, Schema] = field(default_factory=dict[str, Schema])
    """subject → schema equal to today's class."""

    def add(self, schema: Schema) -> None:
        """The first text of an id counts, and the first id of a class of today."""
        first = self.by_id.setdefault(schema.schema_id, schema)
        if first.definition == schema.definition and _todays().get(schema.subject) == schema.definition:
            self.current.setdefault(schema.subject, schema)


class Codec:
    """Fact ⇄ frame, for one log. Pure once built; `decode` reads any schema ever recorded."""

    def __init__(self, schemas: SchemaSet) -> None:
        self.schemas = schemas

    def encode(self, fact: Fact, topic: str | None = None) -> bytes:
        """The final frame of a fact. `topic` only for facts that live on several."""
        name = type(fact).__name__
        body = {k: _bare(v) for k, v in fact}
        return self.encode_dict(name, body, topic)

    def encode_dict(self, name: str, body: Mapping[str, Any], topic: str | None = None) -> bytes:
        """The frame of a body already known to be right: the hot path, without pydantic. Missing fields take the schema's defaults."""
        schema = self.schema_for(name, topic)
        out = io.BytesIO()
        out.write(b"\x00" + schema.schema_id.to_bytes(4, "big"))
        fastavro.schemaless_writer(out, schema.parsed, body)
        frame = out.getvalue()
        if len(frame) > FRAME_BYTES_MAX:
            raise FrameTooLarge(f"{name} takes {len(frame)} bytes, more than {FRAME_BYTES_MAX}")
        return frame

    def schema_for(self, name: str, topic: str | None = None) -> Schema:
        subject = f"{topic or FACTS[name].topic}-{name}"
        schema = self.schemas.current.get(subject)
        if schema is None:
            raise UnknownSubject(f"{subject}: no schema of this class on the log; run `modelmarket schemas publish`")
        return schema

    def decode(self, value: bytes | None) -> tuple[str, dict[str, Any]]:
        """(fact name, body) with the writer's schema; fields the writer did not know take today's defaults."""
        schema, body = self.decode_raw(value)
        return schema.name, {**_defaults(schema.name), **body}

    def decode_raw(self, value: bytes | None) -> tuple[Schema, dict[str, Any]]:
        schema_id = frame_schema_id(value)
        schema = self.schemas.by_id.get(schema_id)
        if schema is None:
            raise Undecodable("unknown_schema", f"schema id {schema_id} is not on the log")
        assert value is not None
        stream = io.BytesIO(value)
        stream.seek(HEADER_BYTES)
        try:
            body = cast(dict[str, Any], fastavro.schemaless_reader(stream, schema.parsed, None))
        except Exception as e:  # fastavro raises whatever the bytes provoke: EOFError, IndexError, UnicodeDecodeError, MemoryError …
            raise Undecodable("undecodable", f"{type(e).__name__}: {e}"[:300]) from e
        if stream.tell() != len(value):
            raise Undecodable("trailing_bytes", f"{len(value) - stream.tell()} bytes after the end of the record")
        return schema, body

    def fact(self, value: bytes) -> Fact:
        """The fact as its class: validated, for people and tests. Not for folds (K5)."""
        name, body = self.decode(value)
        if name not in FACTS:
            raise Undecodable("unknown_fact", f"{name} is not in the topic table")
        return FACTS[name].cls.model_validate(body)


def frame_schema_id(value: bytes | None) -> int:
    if value is None:
        raise Undecodable("no_value", "the record has no value")
    if len(value) < HEADER_BYTES or value[0] != MAGIC:
        raise Undecodable("not_framed", "the value does not start with 00 and a schema id")
    if len(value) > FRAME_BYTES_MAX:
        raise Undecodable("too_large", f"{len(value)} bytes, more than {FRAME_BYTES_MAX}")
    return int.from_bytes(value[1:5], "big")


def _bare(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else [_bare(v) for v in value] if isinstance(value, tuple) else value


def _plain(node: Any) -> Any:
    """The schema without logical types, so that fastavro hands over what is on the wire."""
    if isinstance(node, dict):
        d = cast(dict[str, Any], node)
        if "logicalType" in d:
            return d["type"]
        return {k: v if k in ("default", "doc") else _plain(v) for k, v in d.items()}
    if isinstance(node, list):
        return [_plain(v) for v in cast(list[Any], node)]
    return node


_TODAY: dict[str, str] = {}
_DEFAULTS: dict[str, dict[str, Any]] = {}


def _todays() -> dict[str, str]:
    if not _TODAY:
        _TODAY.update({e.subject: avro.canonical(avro.schema_of(e.cls)) for e in entries()})
    return _TODAY


def todays_schemas() -> dict[str, str]:
    """subject → the schema text of today's class."""
    return dict(_todays())


def _defaults(name: str) -> dict[str, Any]:
    if name not in _DEFAULTS:
        entry = FACTS.get(name)
        fields = entry.cls.model_fields if entry else {}
        _DEFAULTS[name] = {k: _bare(f.default) for k, f in fields.items() if not f.is_required()}
    return _DEFAULTS[name]
