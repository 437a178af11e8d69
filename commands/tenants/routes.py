"""The resource of tenants and their API keys."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from access.bearer import api_key, digest_of
from commands.http.answers import state_answer
from commands.http.bounds import REASON_CHARS_MAX, SlugPath, TextPath
from commands.http.command_app import AuthorizedCall, CommandApp
from commands.http.operations import command, reading
from commands.http.problem_answers import HttpProblem, rejected_answer
from commands.prices.answers import BookShown, book_answer, unpublished
from commands.prices.lookup import book_currency
from commands.prices.state import PRICE_BOOK, NoBook
from commands.processor.command_handler import CommandHandler
from commands.tenants.answers import KeyIssued, KeyRevoked, QuotaAnswer, QuotaShown, TenantAnswer, TenantShown
from commands.tenants.decide import CreateTenant, IssueApiKey, RevokeApiKey, SetQuota, decide
from commands.tenants.requests import CreateTenantRequest, IssueKeyRequest, SetQuotaRequest
from commands.tenants.state import TENANT, ActiveTenant, TenantState, no_tenant
from events.facts.accounts import ResourceQuota
from events.facts.fact import KeyId


class Tenants:
    """Companies that own models, call them, or both; and their API keys."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/tenants", tags=["tenants"])
        command(routes, "POST", "", TenantAnswer, created=True)(self.create)
        reading(routes, "/{tenant}", TenantShown)(self.read)
        reading(routes, "/{tenant}/price-book", BookShown)(self.price_book)
        reading(routes, "/{tenant}/quota", QuotaShown)(self.quota)
        command(routes, "POST", "/{tenant}/quota", QuotaAnswer)(self.set_quota)
        command(routes, "POST", "/{tenant}/keys", KeyIssued, created=True)(self.issue_key)
        command(routes, "DELETE", "/{tenant}/keys/{key_id}", KeyRevoked)(self.revoke_key)
        return routes

    def create(self, body: CreateTenantRequest, request: Request) -> Response:
        """A company that owns models, calls them, or both."""
        call = self._app.authorize(request, "admin")
        command = body.command(book_currency(self._app.aggregates, body.price_book))
        return self._app.run(call, CREATE, body.tenant, command, body)

    def read(self, tenant: SlugPath, request: Request) -> Response:
        """The tenant and its working keys, without their secrets."""
        call = self._app.authorize(request, "read")
        state = self._own(call, tenant)
        content = {
            "tenant": state.tenant,
            **state.terms.model_dump(),
            "keys": [{"key_id": key_id, "expires_at": expires_at} for key_id, expires_at in state.keys.items()],
        }
        return state_answer(call.headers, state.version, content)

    def price_book(self, tenant: SlugPath, request: Request) -> Response:
        """What the tenant pays by: the newest version that was published, also one that holds only later."""
        call = self._app.authorize(request, "read")
        own = self._own(call, tenant)
        book = self._app.aggregates.load(PRICE_BOOK, own.terms.price_book)
        return unpublished(call, own.terms) if isinstance(book, NoBook) else book_answer(call, book)

    def quota(self, tenant: SlugPath, request: Request) -> Response:
        """How much the tenant's loaded versions may take together, and how much they take."""
        call = self._app.authorize(request, "read", "deploy")
        state = self._own(call, tenant)
        now = self._app.processor.quotas.load(tenant)
        content = {"tenant": tenant, "version": state.version, "default": state.quota is None}
        return state_answer(call.headers, state.version, {**content, "quota": asdict(now.quota), "used": asdict(now.used)})

    def set_quota(self, tenant: SlugPath, body: SetQuotaRequest, request: Request) -> Response:
        """Another quota from now on. Nothing that is loaded is stopped; what would pass the quota is refused."""
        call = self._app.authorize(request, "admin")
        return self._app.run(call, SET_QUOTA, tenant, body.command(), body)

    def _own(self, call: AuthorizedCall, tenant: str) -> ActiveTenant:
        """Raises HttpProblem: another tenant is as unknown as one that does not exist."""
        state = self._app.aggregates.load(TENANT, tenant)
        if not isinstance(state, ActiveTenant) or not call.principal.acts_for(tenant):
            raise HttpProblem(rejected_answer(no_tenant(), call.headers))
        return state

    def issue_key(self, tenant: SlugPath, body: IssueKeyRequest, request: Request) -> Response:
        """A new API key. `api_key` is shown here and nowhere else; a repeat with the same Idempotency-Key shows it again.

        To the same caller only: under another admin's key the Idempotency-Key is refused as used."""
        call = self._app.authorize(request, "admin")
        key_id, nonce = KeyId(f"k-{uuid.uuid4().hex}"), secrets.token_hex(16)
        command = body.command(key_id, digest_of(_secret_of(call.secret, key_id, nonce).encode()).hex(), nonce)
        return self._app.run(call, ISSUE_KEY, tenant, command, body)

    def revoke_key(self, tenant: SlugPath, key_id: TextPath, request: Request, reason: str = "") -> Response:
        """The key stops working at every gateway within two seconds."""
        call = self._app.authorize(request, "admin")
        return self._app.run(call, REVOKE_KEY, tenant, RevokeApiKey(KeyId(key_id), reason[:REASON_CHARS_MAX]))


def _created(state: TenantState, command: CreateTenant) -> dict[str, Any]:
    return {"tenant": command.tenant}


def _issued(state: TenantState, command: IssueApiKey) -> dict[str, Any]:
    assert isinstance(state, ActiveTenant)
    return {
        "tenant": state.tenant,
        "key_id": command.key_id,
        "user": command.user,
        "scopes": list(command.grant.scopes),
        "expires_at": command.grant.expires_at,
        "_nonce": command.nonce,
    }


def _revoked(state: TenantState, command: RevokeApiKey) -> dict[str, Any]:
    assert isinstance(state, ActiveTenant)
    return {"tenant": state.tenant, "key_id": command.key_id}


def _quota_set(state: TenantState, command: SetQuota) -> dict[str, Any]:
    assert isinstance(state, ActiveTenant)
    return {"tenant": state.tenant, "quota": command.quota.shared(ResourceQuota)}


def _reveal_key(kept: Mapping[str, Any], caller_secret: str) -> dict[str, Any]:
    return {"api_key": _secret_of(caller_secret, kept["key_id"], kept["_nonce"])}


def _secret_of(caller_secret: str, key_id: str, nonce: str) -> str:
    """Follows from the caller's own secret, which is not kept, and a nonce that is kept with the answer. So a repeated request of the same
    caller shows the same key, and neither the store nor the log holds anything that a key could be made from."""
    made = hmac.new(caller_secret.encode(), f"api-key\n{key_id}\n{nonce}".encode(), hashlib.sha256).digest()
    return api_key(made)


CREATE = CommandHandler(TENANT, decide, _created, created=True)
ISSUE_KEY = CommandHandler(TENANT, decide, _issued, reveal=_reveal_key, created=True)
REVOKE_KEY = CommandHandler(TENANT, decide, _revoked)
SET_QUOTA = CommandHandler(TENANT, decide, _quota_set)
