"""Who may do what: tenants and API keys. Topic `accounts`, key = tenant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from events.facts.fact import (
    DEFAULT_CURRENCY,
    INT64_MAX,
    SLUG_PATTERN,
    BookId,
    Currency,
    DecidedFact,
    KeyId,
    Line,
    NestedRecord,
    NonNegative,
    OptionalLine,
    Slug,
    TenantId,
    Timestamp,
    UserId,
)

Scope = Literal["invoke", "models", "review:business", "review:security", "deploy", "read", "admin"]


Dimension = Annotated[str, Field(max_length=200)]


class KeyDimensions(NestedRecord):
    """What an API key says of its holder, copied to every usage fact of the key and asked for in queries. The one list of them: table,
    views, request bodies, gateway and query API are made from it."""

    sub_account: Dimension = ""
    department: Dimension = ""
    team: Dimension = ""
    project: Dimension = ""


KEY_DIMENSIONS: tuple[str, ...] = tuple(KeyDimensions.model_fields)


def _each_once(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    if len(set(scopes)) != len(scopes):
        raise PydanticCustomError("scope_twice", "a scope is named twice")
    return scopes


DEFAULT_TIMEZONE = "Asia/Shanghai"


class TenantTerms(NestedRecord):
    """What a tenant is called and how it is billed. The one list of it: request, command, fact and state are made from it.
    `price_book` names the prices it pays; its periods begin and end in `timezone`, which a machine's list of zones must know only when the
    tenant is created: such lists change, and the fact must be read for ever."""

    display_name: Line
    price_book: Annotated[BookId, Field(pattern=SLUG_PATTERN)] = BookId("standard")
    currency: Currency = DEFAULT_CURRENCY
    timezone: Annotated[str, Field(max_length=64)] = DEFAULT_TIMEZONE


class KeyGrant(KeyDimensions):
    """What an API key allows, says of its holder, and until when. The one list of it: request, command and fact are made from it."""

    scopes: Annotated[
        tuple[Scope, ...], Field(min_length=1, max_length=7, json_schema_extra={"uniqueItems": True}), AfterValidator(_each_once)
    ]
    labels: Annotated[dict[Slug, OptionalLine], Field(max_length=20, json_schema_extra={"additionalProperties": False})] = {}
    expires_at: Annotated[Timestamp, Field(ge=0, le=INT64_MAX)] | None = Field(default=None, description="µs UTC; none: never.")


class ResourceQuota(NestedRecord):
    """How much a tenant's loaded versions may take together; CPU and GPU in thousandths. The one list of it: request, fact and state are
    made from it. 0 replicas: the tenant deploys nothing more."""

    replicas: Annotated[int, Field(ge=0, le=1_000_000)]
    cpu_millis: Annotated[int, Field(ge=0, le=1_000_000_000)]
    gpu_millis: Annotated[int, Field(ge=0, le=1_000_000_000)]
    memory_bytes: NonNegative


class TenantCreated(TenantTerms, DecidedFact):
    """A company may own models, call them and be billed."""

    tenant: TenantId
    by: UserId


class ApiKeyIssued(KeyGrant, DecidedFact):
    """A key works from now until it expires or is revoked. Only its hash is kept. `user` is a random pseudonym (K24); the
    dimensions are written on every usage fact of the key."""

    tenant: TenantId
    key_id: KeyId
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    user: UserId
    by: UserId


class ApiKeyRevoked(DecidedFact):
    """The key stops working at every gateway within two seconds, or the gateway stops (K5)."""

    tenant: TenantId
    key_id: KeyId
    reason: str = ""
    by: UserId


class TenantQuotaSet(ResourceQuota, DecidedFact):
    """The tenant's loaded versions may take this much together from now on, whatever held before. Nothing that is loaded is stopped: what
    is asked for from now on is refused while it would pass the quota."""

    tenant: TenantId
    reason: str
    by: UserId
