"""What is answered about a tenant and its API keys."""

from __future__ import annotations

from pydantic import BaseModel, Field

from commands.http.answers import Accepted
from events.facts.accounts import Scope


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
