"""Validates one usage record strictly, as the table would take it: only for chunks that the insert refused (K9).

It must refuse what the insert refuses and nothing else, or a replay would differ from the first reading: a test puts thousands of
damaged records before both. Bounded by the bytes at hand: no claimed length is believed before it is checked. Pure.
Source: Apache Avro 1.12, binary encoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from events.schema.codec import HEADER_BYTES, Schema, SchemaSet, Undecodable, frame_schema_id
from projections.usage.table import COLUMNS

SUBJECTS = "usage-"
_COUNTS = frozenset(c.name for c in COLUMNS if c.count)
_TEXTS = frozenset(c.name for c in COLUMNS if c.text)
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

Read = Callable[[bytes, int], tuple[Any, int]]


def validate(schema: Schema, value: bytes) -> None:
    """Raises Undecodable with why the record is no usage fact."""
    at = HEADER_BYTES
    for f in cast(Mapping[str, Any], schema.parsed)["fields"]:
        name = str(f["name"])
        found, at = _reader(f["type"])(value, at)
        if name in _COUNTS and found < 0:
            raise Undecodable("negative_count", f"{name} is {found}")
        if name in _TEXTS:
            _check_text(name, found)
        if name == "event_id" and not _UUID.fullmatch(found):
            raise Undecodable("not_a_uuid", "event_id is not a UUID in lower case")
    if at != len(value):
        raise Undecodable("trailing_bytes", f"{len(value) - at} bytes after the end of the record")


def why_unreadable(schemas: SchemaSet, value: bytes | None) -> Undecodable | None:
    """Why these bytes cannot be read as usage, by the schemas of a book; None for a usage fact. The one meaning of "readable" (K9)."""
    try:
        schema = schemas.by_id.get(frame_schema_id(value))
        if schema is None:
            raise Undecodable("unknown_schema", f"schema id {frame_schema_id(value)} is not on the log")
        if not schema.subject.startswith(SUBJECTS):
            raise Undecodable("wrong_subject", f"schema id {schema.schema_id} is {schema.subject}, which is no usage fact")
        assert value is not None
        validate(schema, value)
    except Undecodable as e:
        return e
    return None


def _check_text(name: str, found: bytes | list[bytes]) -> None:
    for text in [found] if isinstance(found, bytes) else found:
        try:
            text.decode()
        except UnicodeDecodeError as e:
            raise Undecodable("not_utf8", f"{name}: {e}") from e


def _reader(avro: Any) -> Read:
    if isinstance(avro, dict):
        typed = cast(Mapping[str, Any], avro)
        match typed["type"]:
            case "fixed":
                size = int(typed["size"])
                return lambda data, at: _take(data, at, size)
            case "map":
                return _map
            case plain:
                return _reader(plain)
    match avro:
        case "long" | "int":
            return _long
        case "string" | "bytes":
            return _bytes
        case "boolean":
            return _boolean
        case _ if str(avro).rpartition(".")[2].startswith("Fixed"):
            size = int(str(avro).rpartition("Fixed")[2])
            return lambda data, at: _take(data, at, size)
        case _:
            raise Undecodable("unsuitable_schema", f"a field of type {avro}")


def _take(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    if size < 0 or at + size > len(data):
        raise Undecodable("undecodable", f"{size} bytes claimed, {len(data) - at} are there")
    return data[at : at + size], at + size


def _long(data: bytes, at: int) -> tuple[int, int]:
    n = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Undecodable("undecodable", "a number does not end")
        byte = data[at]
        at += 1
        n |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    n &= (1 << 64) - 1  # what a 64-bit reader keeps of a tenth byte
    return (n >> 1) ^ -(n & 1), at


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _long(data, at)
    return _take(data, at, size)


def _boolean(data: bytes, at: int) -> tuple[bool, int]:
    found, at = _take(data, at, 1)
    if found not in (b"\x00", b"\x01"):
        raise Undecodable("undecodable", f"{found!r} is no boolean")
    return found == b"\x01", at


def _map(data: bytes, at: int) -> tuple[list[bytes], int]:
    texts = list[bytes]()
    while True:
        count, at = _long(data, at)
        if count == 0:
            return texts, at
        if count < 0:
            _, at = _long(data, at)
            count = -count
        if count > len(data):
            raise Undecodable("undecodable", f"a map claims {count} entries")
        for _ in range(2 * count):
            text, at = _bytes(data, at)
            texts.append(text)
