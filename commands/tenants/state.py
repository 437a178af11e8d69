"""A tenant and its API keys, as far as commands need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from commands.processor.aggregate_kind import AggregateKind
from commands.processor.rejection import Rejected, missing
from commands.processor.tenant_quota import TenantShare
from events.facts.accounts import ApiKeyIssued, ApiKeyRevoked, TenantCreated, TenantQuotaSet, TenantTerms
from events.facts.fact import TenantId, Timestamp
from lifecycle.resources import Resources, quota_of

TenantFact = TenantCreated | ApiKeyIssued | ApiKeyRevoked | TenantQuotaSet


@dataclass(frozen=True, slots=True)
class NoTenant:
    version: int = 0
    kind: Literal["unknown"] = "unknown"


@dataclass(frozen=True, slots=True)
class ActiveTenant:
    """`keys` are the working ones, key id → end (None: none); `revoked` the others. `quota` None: the default one."""

    version: int
    tenant: TenantId
    terms: TenantTerms
    keys: Mapping[str, Timestamp | None]
    revoked: frozenset[str] = frozenset()
    quota: Resources | None = None
    kind: Literal["active"] = "active"


TenantState = NoTenant | ActiveTenant


def evolve(state: TenantState, fact: TenantFact) -> TenantState:
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    match state:
        case NoTenant():
            assert isinstance(fact, TenantCreated)
            return ActiveTenant(fact.version, fact.tenant, TenantTerms(**fact.shared(TenantTerms)), {})
        case ActiveTenant():
            return _evolve_active(replace(state, version=fact.version), fact)
        case _:
            assert_never(state)


def _evolve_active(state: ActiveTenant, fact: TenantFact) -> ActiveTenant:
    match fact:
        case TenantCreated():
            raise AssertionError("a tenant is created once")
        case ApiKeyIssued():
            return replace(state, keys={**state.keys, fact.key_id: fact.expires_at})
        case ApiKeyRevoked():
            return replace(state, keys={k: v for k, v in state.keys.items() if k != fact.key_id}, revoked=state.revoked | {fact.key_id})
        case TenantQuotaSet():
            return replace(state, quota=quota_of(fact))
        case _:
            assert_never(fact)


def _share(state: TenantState) -> TenantShare | None:
    return TenantShare(state.tenant, quota=state.quota) if isinstance(state, ActiveTenant) else None


TENANT: AggregateKind[TenantState] = AggregateKind("tenant", NoTenant(), evolve, _share)


def no_tenant() -> Rejected:
    return missing("tenant_unknown", "there is no such tenant, or it is not yours", "tenant", "create it first, or check the id")


def active_tenant(state: TenantState) -> ActiveTenant | Rejected:
    """The guard of everything that needs a tenant."""
    return no_tenant() if isinstance(state, NoTenant) else state
