"""A fact is one thing that happened, said once, in the past tense, and never changed.

The pydantic class is the source of truth; `schemas/` is generated from it. A fact holds no float: money is integer micro-units
with a currency, a duration integer microseconds, an instant integer microseconds since 1970 in UTC.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NewType

from pydantic import BaseModel, ConfigDict, Field

Micros = Annotated[int, "timestamp-micros"]
"""An instant: microseconds since 1970-01-01 UTC."""
Duration = Annotated[int, Field(ge=0)]
"""A length of time in microseconds."""
Count = Annotated[int, Field(ge=0)]
Uuid = Annotated[str, "uuid"]
Sha256 = Annotated[bytes, "fixed32", Field(min_length=32, max_length=32)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

TenantId = NewType("TenantId", str)
ModelId = NewType("ModelId", str)
ModelVersion = NewType("ModelVersion", str)
KeyId = NewType("KeyId", str)
UserId = NewType("UserId", str)
BookId = NewType("BookId", str)

DEFAULT_CURRENCY = "CNY"
NO_HASH = bytes(32)
"""`previous_sha256` of the first fact of an epoch."""

Kind = Literal["decided", "observed"]


class Part(BaseModel):
    """A value inside a fact: a nested Avro record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fact(BaseModel):
    """What every fact says first: which one it is, when it was, who says it, and what led to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[Kind] = "observed"

    event_id: Uuid
    occurred_at: Micros
    producer: str
    causation_id: str = ""
    correlation_id: str = ""


class Decided(Fact):
    """A fact that a rule could have refused. `version` counts the facts of its aggregate from 1; the relay adds its
    place in the store (`store`, `position`, `previous`) as Kafka headers, since it never encodes (K3, K4)."""

    kind: ClassVar[Kind] = "decided"

    version: Annotated[int, Field(ge=1)]


class Metered(Fact):
    """A fact on `usage`. `sequence` counts from 1 per (epoch, tenant) and `previous_sha256` is the hash of the framed record
    before it in that chain, so that a bill can show that none is missing (K13)."""

    tenant: TenantId
    epoch: str
    sequence: Annotated[int, Field(ge=1)]
    previous_sha256: Sha256 = NO_HASH


@dataclass(frozen=True, slots=True, order=True)
class Coordinate:
    """Where a record stands in the log `log_id`."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def now_us() -> int:
    return time.time_ns() // 1000


_ids: deque[str] = deque()
_IDS_AT_ONCE = 64
# A child must not say the ids its parent will say.
os.register_at_fork(after_in_child=_ids.clear)


def new_id() -> str:
    """A random UUID (version 4, RFC 9562). Made many at a time: asking the kernel for chance gives up the interpreter lock, which in a
    gateway full of threads costs more than the rest of a fact's identity."""
    while True:
        try:
            return _ids.popleft()
        except IndexError:
            chance = os.urandom(16 * _IDS_AT_ONCE)
            _ids.extend(str(uuid.UUID(bytes=chance[at : at + 16], version=4)) for at in range(0, len(chance), 16))
