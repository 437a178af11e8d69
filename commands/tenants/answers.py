"""What is answered about a tenant and its API keys."""

from __future__ import annotations

from pydantic import BaseModel, Field

from commands.http.answers import Accepted
from events.facts.accounts import ResourceQuota, Scope


class TenantAnswer(Accepted):
    tenant: str


class WorkingKey(BaseModel):
    key_id: str
    expires_at: int | None = Field(description="µs UTC; null: never.")


class TenantShown(BaseModel):
    tenant: str
    display_name: str
    price_book: str
    currency: str
    timezone: str
    keys: list[WorkingKey]


class KeyIssued(Accepted):
    tenant: str
    key_id: str
    user: str
    scopes: list[Scope]
    expires_at: int | None = Field(description="µs UTC; null: never.")
    api_key: str = Field(description="The secret: shown here and nowhere else.")


class KeyRevoked(Accepted):
    tenant: str
    key_id: str


class QuotaAnswer(Accepted):
    tenant: str
    quota: ResourceQuota


class ResourcesUsed(BaseModel):
    """By all loaded versions of the tenant's models: replicas_max times what each replica may take."""

    replicas: int
    cpu_millis: int
    gpu_millis: int
    memory_bytes: int


class QuotaShown(BaseModel):
    tenant: str
    version: int = Field(description="Of the tenant, for If-Match.")
    default: bool = Field(description="Nobody decided another quota for this tenant.")
    quota: ResourceQuota
    used: ResourcesUsed
