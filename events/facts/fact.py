"""A fact is one thing that happened, said once, in the past tense, and never changed.

The pydantic class is the source of truth; `schemas/` is generated from it. A fact holds no float: money is integer micro-units
with a currency, a duration integer microseconds, an instant integer microseconds since 1970 in UTC.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NewType

from pydantic import BaseModel, ConfigDict, Field

Timestamp = Annotated[int, "timestamp-micros"]
"""An instant: microseconds since 1970-01-01 UTC."""
Duration = Annotated[int, Field(ge=0)]
"""A length of time in microseconds."""
Count = Annotated[int, Field(ge=0)]
INT64_MAX = (1 << 63) - 1
NonNegative = Annotated[int, Field(ge=0, le=INT64_MAX)]
"""A count that a caller names: Avro's long holds it."""
Signed = Annotated[int, Field(ge=-INT64_MAX, le=INT64_MAX)]
Line = Annotated[str, Field(min_length=1, max_length=200)]
OptionalLine = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=10_000)]
SLUG_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
Slug = Annotated[str, Field(pattern=SLUG_PATTERN)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
"""Bounds of the texts that a caller writes. They only ever widen: facts are checked again when a command is decided on them."""
Uuid = Annotated[str, "uuid"]
Sha256 = Annotated[bytes, "fixed32", Field(min_length=32, max_length=32)]
PublicKey = Annotated[bytes, Field(max_length=32)]
"""Ed25519 (RFC 8032): 32 bytes. Empty: none."""
Signature = Annotated[bytes, Field(max_length=64)]
"""Ed25519 (RFC 8032): 64 bytes. Empty: none."""
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


class NestedRecord(BaseModel):
    """A value inside a fact: a nested Avro record. Also fields that several classes share by inheriting them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def shared(self, base: type[NestedRecord]) -> dict[str, Any]:
        """The fields that this value has of a base, by name: for another class that shares them."""
        return {name: getattr(self, name) for name in base.model_fields}


class Fact(BaseModel):
    """What every fact says first: which one it is, when it was, who says it, and what led to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[Kind] = "observed"

    event_id: Uuid
    occurred_at: Timestamp
    producer: str
    causation_id: str = ""
    correlation_id: str = ""


class DecidedFact(Fact):
    """A fact that a rule could have refused. `version` counts the facts of its aggregate from 1; the relay adds its
    place in the store (`store`, `position`, `previous_sha256`) as Kafka headers, since it never encodes (K3, K4)."""

    kind: ClassVar[Kind] = "decided"

    version: Annotated[int, Field(ge=1)]
