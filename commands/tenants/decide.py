"""Which tenants may be created, which keys may be issued and revoked, and which quota holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, invalid, missing
from commands.tenants.state import NoTenant, TenantFact, TenantState, active_tenant
from events.facts.accounts import ApiKeyIssued, ApiKeyRevoked, KeyGrant, ResourceQuota, TenantCreated, TenantQuotaSet, TenantTerms
from events.facts.fact import KeyId, TenantId, UserId
from lifecycle.resources import QUOTA_DEFAULT, quota_of

KEYS_MAX = 10_000
"""Working keys of one tenant: bounds its aggregate and what every gateway keeps of it."""


@dataclass(frozen=True, slots=True)
class CreateTenant:
    tenant: TenantId
    terms: TenantTerms
    book_currency: str = ""
    """What the book's prices are in; empty when there is no such book yet."""


@dataclass(frozen=True, slots=True)
class IssueApiKey:
    """Only the hash of the secret comes this far. `nonce` is kept with the answer, and nowhere else."""

    key_id: KeyId
    key_sha256: str
    user: UserId
    grant: KeyGrant
    nonce: str = ""


@dataclass(frozen=True, slots=True)
class RevokeApiKey:
    key_id: KeyId
    reason: str


@dataclass(frozen=True, slots=True)
class SetQuota:
    quota: ResourceQuota
    reason: str


TenantCommand = CreateTenant | IssueApiKey | RevokeApiKey | SetQuota
Decision = tuple[TenantFact, ...] | Rejected


def decide(state: TenantState, command: TenantCommand, context: CommandContext) -> Decision:
    match command:
        case CreateTenant():
            return _create(state, command, context)
        case IssueApiKey():
            return _issue(state, command, context)
        case RevokeApiKey():
            return _revoke(state, command, context)
        case SetQuota():
            return _set_quota(state, command, context)
        case _:
            assert_never(command)


def _create(state: TenantState, c: CreateTenant, o: CommandContext) -> Decision:
    if not isinstance(state, NoTenant):
        return conflict("tenant_exists", f"tenant {c.tenant} exists", "tenant", "choose another id")
    if c.book_currency not in ("", c.terms.currency):
        message = f"book {c.terms.price_book} is in {c.book_currency}"
        return invalid("currency_differs", message, "currency", "take the book's currency, or a book in the tenant's")
    return (TenantCreated(**o.head(1), tenant=c.tenant, **c.terms.shared(TenantTerms), by=o.by),)


def _issue(state: TenantState, c: IssueApiKey, o: CommandContext) -> Decision:
    active = active_tenant(state)
    if isinstance(active, Rejected):
        return active
    if c.grant.expires_at is not None and c.grant.expires_at <= o.now:
        return invalid(
            "expires_in_past",
            "the key would expire before it is issued",
            "expires_at",
            "give an instant in the future, in µs UTC, or none",
        )
    working = sum(1 for end in active.keys.values() if end is None or end > o.now)
    if working >= KEYS_MAX:
        return conflict("too_many_keys", f"a tenant has at most {KEYS_MAX} working keys", "tenant", "revoke keys that are not used")
    assert c.key_id not in active.keys and c.key_id not in active.revoked, "key ids are minted"
    fact = ApiKeyIssued(
        **o.head(active.version + 1),
        tenant=active.tenant,
        key_id=c.key_id,
        key_sha256=c.key_sha256,
        user=c.user,
        **c.grant.shared(KeyGrant),
        by=o.by,
    )
    return (fact,)


def _revoke(state: TenantState, c: RevokeApiKey, o: CommandContext) -> Decision:
    active = active_tenant(state)
    if isinstance(active, Rejected):
        return active
    if c.key_id in active.revoked:
        return conflict("already_revoked", f"key {c.key_id} is revoked", "key_id", "nothing to do")
    if c.key_id not in active.keys:
        return missing("key_unknown", f"the tenant has no key {c.key_id}", "key_id", "check the id")
    return (ApiKeyRevoked(**o.head(active.version + 1), tenant=active.tenant, key_id=c.key_id, reason=c.reason, by=o.by),)


def _set_quota(state: TenantState, c: SetQuota, o: CommandContext) -> Decision:
    active = active_tenant(state)
    if isinstance(active, Rejected):
        return active
    if quota_of(c.quota) == (active.quota or QUOTA_DEFAULT):
        return ()
    head = o.head(active.version + 1)
    return (TenantQuotaSet(**head, tenant=active.tenant, **c.quota.shared(ResourceQuota), reason=c.reason, by=o.by),)
