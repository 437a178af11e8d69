"""The requests about tenants and their API keys, with every bound on them."""

from __future__ import annotations

import hashlib
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from access.principal import PLATFORM
from commands.http.bounds import Reason
from commands.tenants.decide import CreateTenant, IssueApiKey, SetQuota
from events.facts.accounts import DEFAULT_TIMEZONE, KeyGrant, ResourceQuota, TenantTerms
from events.facts.fact import KeyId, Slug, TenantId, UserId

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


class CreateTenantRequest(TenantTerms):
    tenant: Annotated[Slug, Field(json_schema_extra={"not": {"enum": sorted(RESERVED)}}), AfterValidator(_not_reserved)]
    timezone: Annotated[str, Field(max_length=64, json_schema_extra={"format": "timezone"}), AfterValidator(_known_timezone)] = (
        DEFAULT_TIMEZONE
    )

    def command(self, book_currency: str) -> CreateTenant:
        return CreateTenant(TenantId(self.tenant), TenantTerms(**self.shared(TenantTerms)), book_currency)


class IssueKeyRequest(KeyGrant):
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = Field(None, description="A pseudonym; none: minted.")

    def command(self, key_id: KeyId, key_sha256: str, nonce: str) -> IssueApiKey:
        user = self.user or f"u-{hashlib.sha256(key_id.encode()).hexdigest()[:16]}"
        return IssueApiKey(key_id, key_sha256, UserId(user), KeyGrant(**self.shared(KeyGrant)), nonce)


class SetQuotaRequest(ResourceQuota):
    reason: Reason

    def command(self) -> SetQuota:
        return SetQuota(ResourceQuota(**self.shared(ResourceQuota)), self.reason)
