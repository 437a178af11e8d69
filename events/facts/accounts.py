"""Who may do what: tenants and API keys. Topic `accounts`, key = tenant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from events.facts.fact import DEFAULT_CURRENCY, BookId, DecidedFact, KeyId, TenantId, Timestamp, UserId

Scope = Literal["invoke", "models", "review:business", "review:security", "deploy", "read", "admin"]


class TenantCreated(DecidedFact):
    """A company may own models, call them and be billed. `price_book` names the prices it pays."""

    tenant: TenantId
    display_name: str
    price_book: BookId = BookId("standard")
    currency: str = DEFAULT_CURRENCY
    timezone: str = "Asia/Shanghai"
    by: UserId


class ApiKeyIssued(DecidedFact):
    """A key works from now until it expires or is revoked. Only its hash is kept. `user` is a random pseudonym (K24); the
    dimensions are written on every usage fact of the key."""

    tenant: TenantId
    key_id: KeyId
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    user: UserId
    scopes: tuple[Scope, ...]
    sub_account: str = ""
    department: str = ""
    team: str = ""
    project: str = ""
    labels: dict[str, str] = {}
    expires_at: Timestamp | None = None
    by: UserId


class ApiKeyRevoked(DecidedFact):
    """The key stops working at every gateway within two seconds, or the gateway stops (K5)."""

    tenant: TenantId
    key_id: KeyId
    reason: str = ""
    by: UserId
