"""Raw Avro bodies from the log as one Avro object container that ClickHouse reads: nothing is decoded on the way.

An Avro record is its fields' encodings one after another, so `body + tail` is a valid record of the writer's schema with one more
field. The tail has a fixed size and ends in a random guard that the insert checks (K9): whatever the bytes of a body claim, a row
whose guard is right began where the record before it ended and used exactly its own bytes. Pure, but for the chance it is given.
Source: Apache Avro 1.12, object container files.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from events.log.record import LogRecord

GUARD_BYTES = SYNC_BYTES = 16
TAIL = struct.Struct("<iQq32s16s")
"""partition, offset, append time in ms, SHA-256 of the framed record, guard: 68 bytes, read by position in the insert's SELECT."""
TAIL_FIELD = "log_tail"
FRAME_BYTES = 5


@dataclass(frozen=True, slots=True)
class Container:
    """Bytes for `INSERT … FORMAT Avro`, and what must be true of them."""

    pieces: tuple[bytes, ...]
    rows: int
    guard: bytes


def extended(definition: str) -> str:
    """The writer's schema with the tail as its last field."""
    schema = cast(dict[str, Any], json.loads(definition))
    tail = {"name": TAIL_FIELD, "type": {"type": "fixed", "name": "LogTail", "size": TAIL.size}}
    return json.dumps({**schema, "fields": [*schema["fields"], tail]}, separators=(",", ":"))


def wrap(schema: bytes, records: Sequence[LogRecord], guard: bytes, sync: bytes) -> Container:
    """`schema`: text of `extended`. `records`: framed values of that one schema id, `guard` and `sync` random per container."""
    assert len(guard) == GUARD_BYTES and len(sync) == SYNC_BYTES and records
    pack, sha, out = TAIL.pack, hashlib.sha256, list[bytes]()
    for r in records:
        value: bytes = r.value  # pyright: ignore[reportAssignmentType] - a framed record has a value; a check would cost each record
        out += (value[FRAME_BYTES:], pack(r.partition, r.offset, r.timestamp, sha(value).digest(), guard))
    body = b"".join(out)
    head = b"".join((header(schema, sync), zigzag(len(records)), zigzag(len(body))))
    return Container((head, body, sync), len(records), guard)


def header(schema: bytes, sync: bytes) -> bytes:
    return b"".join(
        (b"Obj\x01", zigzag(2), _bytes(b"avro.schema"), _bytes(schema), _bytes(b"avro.codec"), _bytes(b"null"), zigzag(0), sync)
    )


def zigzag(n: int) -> bytes:
    """An Avro long."""
    n = (n << 1) ^ (n >> 63)
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _bytes(data: bytes) -> bytes:
    return zigzag(len(data)) + data
