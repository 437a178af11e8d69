"""Who calls, and what the key lets them do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from access.codes import TENANT_FOREIGN, Refusal, scope_missing
from events.facts.accounts import KEY_DIMENSIONS, Scope
from events.facts.fact import KeyId, TenantId, UserId

PLATFORM = TenantId("platform")
"""The tenant of the first admin's key: the operator of the market."""
ADMIN_USER = UserId("admin")


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of an API key. `dimensions` has a text, possibly empty, for each of KEY_DIMENSIONS."""

    tenant: TenantId
    user: UserId
    key_id: KeyId
    scopes: frozenset[Scope]
    dimensions: Mapping[str, str]
    labels: Mapping[str, str]

    @property
    def admin(self) -> bool:
        return "admin" in self.scopes

    def may(self, scope: Scope, *others: Scope) -> bool:
        """Whether one of the scopes is there. `admin` stands for every scope except `invoke`: a call is billed to the key's tenant,
        so only a key that was issued for calls makes them."""
        if scope in self.scopes or not self.scopes.isdisjoint(others):
            return True
        return "admin" in self.scopes and (scope != "invoke" or others != ())

    def acts_for(self, tenant: str) -> bool:
        """Whether the key may change and read what belongs to this tenant."""
        return self.tenant == tenant or "admin" in self.scopes

    def sees(self, owner: str) -> bool:
        """Whether drafts, reviews and history of this tenant's models may be shown. Reviewers work for the market and see every tenant's."""
        return self.acts_for(owner) or self.may("review:business", "review:security")


FIRST_ADMIN = Principal(PLATFORM, ADMIN_USER, KeyId("first-admin"), frozenset[Scope]({"admin"}), dict.fromkeys(KEY_DIMENSIONS, ""), {})
"""The holder of the key that exists before any fact. It opens the command API and the query API; the gateway does not know it."""


def require_scope(principal: Principal, scope: Scope, *others: Scope) -> Refusal | None:
    """A refusal unless the principal has one of the scopes."""
    return None if principal.may(scope, *others) else scope_missing(scope, *others)


def require_tenant(principal: Principal, tenant: str) -> Refusal | None:
    """A refusal unless the principal acts for the tenant. It does not tell whether such a tenant exists."""
    return None if principal.acts_for(tenant) else TENANT_FOREIGN
