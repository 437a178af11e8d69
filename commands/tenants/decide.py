"""A tenant and its API keys: who may be created, what a key may do, when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, conflict, invalid, missing
from events.facts.accounts import ApiKeyIssued, ApiKeyRevoked, KeyDimensions, Scope, TenantCreated
from events.facts.fact import BookId, KeyId, TenantId, Timestamp, UserId

KEYS_MAX = 10_000
"""Working keys of one tenant: bounds its aggregate and what every gateway keeps of it."""

TenantFact = TenantCreated | ApiKeyIssued | ApiKeyRevoked


@dataclass(frozen=True, slots=True)
class NoTenant:
    version: int = 0
    kind: Literal["unknown"] = "unknown"


@dataclass(frozen=True, slots=True)
class ActiveTenant:
    """`keys` are the working ones, key id → end (None: none); `revoked` the others."""

    version: int
    tenant: TenantId
    display_name: str
    price_book: BookId
    currency: str
    timezone: str
    keys: Mapping[str, Timestamp | None]
    revoked: frozenset[str] = frozenset()
    kind: Literal["active"] = "active"


TenantState = NoTenant | ActiveTenant


@dataclass(frozen=True, slots=True)
class CreateTenant:
    tenant: TenantId
    display_name: str
    price_book: BookId
    currency: str
    timezone: str
    book_currency: str = ""
    """What the book's prices are in; empty when there is no such book yet."""


@dataclass(frozen=True, slots=True)
class IssueApiKey:
    """Only the hash of the secret comes this far."""

    key_id: KeyId
    key_sha256: str
    user: UserId
    scopes: tuple[Scope, ...]
    dimensions: KeyDimensions
    labels: Mapping[str, str]
    expires_at: Timestamp | None


@dataclass(frozen=True, slots=True)
class RevokeApiKey:
    key_id: KeyId
    reason: str


TenantCommand = CreateTenant | IssueApiKey | RevokeApiKey
Decision = tuple[TenantFact, ...] | Rejected


def evolve(state: TenantState, fact: TenantFact) -> TenantState:
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    match state:
        case NoTenant():
            assert isinstance(fact, TenantCreated)
            return ActiveTenant(fact.version, fact.tenant, fact.display_name, fact.price_book, fact.currency, fact.timezone, {})
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
        case _:
            assert_never(fact)


def decide(state: TenantState, command: TenantCommand, origin: CommandContext) -> Decision:
    match command:
        case CreateTenant():
            return _create(state, command, origin)
        case IssueApiKey():
            return _issue(state, command, origin)
        case RevokeApiKey():
            return _revoke(state, command, origin)
        case _:
            assert_never(command)


def no_tenant() -> Rejected:
    return missing("tenant_unknown", "there is no such tenant, or it is not yours", "tenant", "create it first, or check the id")


def _create(state: TenantState, c: CreateTenant, o: CommandContext) -> Decision:
    if not isinstance(state, NoTenant):
        return conflict("tenant_exists", f"tenant {c.tenant} exists", "tenant", "choose another id")
    if c.book_currency not in ("", c.currency):
        message = f"book {c.price_book} is in {c.book_currency}"
        return invalid("currency_differs", message, "currency", "take the book's currency, or a book in the tenant's")
    fact = TenantCreated(
        **o.head(1),
        tenant=c.tenant,
        display_name=c.display_name,
        price_book=c.price_book,
        currency=c.currency,
        timezone=c.timezone,
        by=o.by,
    )
    return (fact,)


def _issue(state: TenantState, c: IssueApiKey, o: CommandContext) -> Decision:
    if isinstance(state, NoTenant):
        return no_tenant()
    if c.expires_at is not None and c.expires_at <= o.now:
        return invalid(
            "expired_at_birth",
            "the key would have ended before it begins",
            "expires_at",
            "give an instant in the future, in µs UTC, or none",
        )
    working = sum(1 for end in state.keys.values() if end is None or end > o.now)
    if working >= KEYS_MAX:
        return conflict("too_many_keys", f"a tenant has at most {KEYS_MAX} working keys", "tenant", "revoke keys that are not used")
    assert c.key_id not in state.keys and c.key_id not in state.revoked, "key ids are minted"
    fact = ApiKeyIssued(
        **o.head(state.version + 1),
        tenant=state.tenant,
        key_id=c.key_id,
        key_sha256=c.key_sha256,
        user=c.user,
        scopes=c.scopes,
        **c.dimensions.model_dump(),
        labels=dict(c.labels),
        expires_at=c.expires_at,
        by=o.by,
    )
    return (fact,)


def _revoke(state: TenantState, c: RevokeApiKey, o: CommandContext) -> Decision:
    if isinstance(state, NoTenant):
        return no_tenant()
    if c.key_id in state.revoked:
        return conflict("already_revoked", f"key {c.key_id} is revoked", "key_id", "nothing to do")
    if c.key_id not in state.keys:
        return missing("key_unknown", f"the tenant has no key {c.key_id}", "key_id", "check the id")
    return (ApiKeyRevoked(**o.head(state.version + 1), tenant=state.tenant, key_id=c.key_id, reason=c.reason, by=o.by),)
