"""The requests about tenants and their API keys, with every bound on them."""

from __future__ import annotations

import hashlib
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from access.principal import PLATFORM
from commands.http.bounds import Currency, RequestBody, Slug
from commands.tenants.decide import CreateTenant, IssueApiKey
from events.facts.accounts import KEY_DIMENSIONS, KeyDimensions, Scope
from events.facts.fact import DEFAULT_CURRENCY, INT64_MAX, BookId, KeyId, Line, OptionalLine, TenantId, UserId

RESERVED = frozenset({PLATFORM, "-"})


def _not_reserved(tenant: str) -> str:
    if tenant in RESERVED:
        raise PydanticCustomError("tenant_reserved", "'{tenant}' is the market's own", {"tenant": tenant})
    return tenant


def _known_timezone(name: str) -> str:
    try:
        if name:
            ZoneInfo(name)
            return name
    except (ValueError, OSError, KeyError):
        pass
    raise PydanticCustomError("timezone_unknown", "'{name}' is no time zone", {"name": name})


def _each_once(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    if len(set(scopes)) != len(scopes):
        raise PydanticCustomError("scope_twice", "a scope is named twice")
    return scopes


class CreateTenantRequest(RequestBody):
    tenant: Annotated[Slug, AfterValidator(_not_reserved)]
    display_name: Line
    price_book: Slug = "standard"
    currency: Currency = DEFAULT_CURRENCY
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_known_timezone)] = "Asia/Shanghai"

    def command(self, book_currency: str) -> CreateTenant:
        book = BookId(self.price_book)
        return CreateTenant(TenantId(self.tenant), self.display_name, book, self.currency, self.timezone, book_currency)


class IssueKeyRequest(KeyDimensions, RequestBody):
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=7), AfterValidator(_each_once)]
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = Field(None, description="A pseudonym; none: minted.")
    labels: Annotated[dict[Slug, OptionalLine], Field(max_length=20)] = {}
    expires_at: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = Field(None, description="µs UTC; none: never.")

    @property
    def dimensions(self) -> KeyDimensions:
        return KeyDimensions(**self.model_dump(include=set(KEY_DIMENSIONS)))

    def command(self, key_id: KeyId, key_sha256: str, nonce: str) -> IssueApiKey:
        user = self.user or f"u-{hashlib.sha256(key_id.encode()).hexdigest()[:16]}"
        return IssueApiKey(
            key_id,
            key_sha256,
            UserId(user),
            self.scopes,
            self.dimensions,
            self.labels,
            self.expires_at,
            nonce,
        )
