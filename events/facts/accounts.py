"""Who may do what: tenants and API keys. Topic `accounts`, key = tenant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from events.facts.fact import DEFAULT_CURRENCY, BookId, DecidedFact, KeyId, NestedRecord, TenantId, Timestamp, UserId

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


class TenantCreated(DecidedFact):
    """A company may own models, call them and be billed. `price_book` names the prices it pays."""

    tenant: TenantId
    display_name: str
    price_book: BookId = BookId("standard")
    currency: str = DEFAULT_CURRENCY
    timezone: str = "Asia/Shanghai"
    by: UserId


class ApiKeyIssued(KeyDimensions, DecidedFact):
    """A key works from now until it expires or is revoked. Only its hash is kept. `user` is a random pseudonym (K24); the
    dimensions are written on every usage fact of the key."""

    tenant: TenantId
    key_id: KeyId
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    user: UserId
    scopes: tuple[Scope, ...]
    labels: dict[str, str] = {}
    expires_at: Timestamp | None = None
    by: UserId


class ApiKeyRevoked(DecidedFact):
    """The key stops working at every gateway within two seconds, or the gateway stops (K5)."""

    tenant: TenantId
    key_id: KeyId
    reason: str = ""
    by: UserId
