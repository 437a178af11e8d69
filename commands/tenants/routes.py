"""The resource of tenants and their API keys."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from access.bearer import api_key, digest_of
from commands.http.answers import CREATED, OK, state_answer
from commands.http.bounds import REASON_CHARS_MAX, SlugPath, TextPath
from commands.http.command_app import CommandApp
from commands.http.problem_answers import rejected_answer
from commands.prices.lookup import book_currency
from commands.processor.command_handler import CommandHandler
from commands.tenants.decide import CreateTenant, IssueApiKey, RevokeApiKey, decide
from commands.tenants.requests import CreateTenantRequest, IssueKeyRequest
from commands.tenants.state import TENANT, ActiveTenant, TenantState, no_tenant
from events.facts.fact import KeyId


class Tenants:
    """Companies that own models, call them, or both; and their API keys."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/tenants", tags=["tenants"])
        routes.post("", status_code=201, responses=CREATED)(self.create)
        routes.get("/{name}")(self.read)
        routes.post("/{name}/keys", status_code=201, responses=CREATED)(self.issue_key)
        routes.delete("/{name}/keys/{key_id}", responses=OK)(self.revoke_key)
        return routes

    def create(self, body: CreateTenantRequest, request: Request) -> Response:
        """A company that owns models, calls them, or both."""
        call = self._app.authorize(request, "admin")
        command = body.command(book_currency(self._app.aggregates, body.price_book))
        return self._app.run(call, CREATE, body.tenant, command, body)

    def read(self, name: SlugPath, request: Request) -> Response:
        """The tenant and its working keys, without their secrets."""
        call = self._app.authorize(request, "read")
        state = self._app.aggregates.load(TENANT, name)
        if not isinstance(state, ActiveTenant) or not call.principal.acts_for(name):
            return rejected_answer(no_tenant(), call.headers)
        content = {
            "tenant": state.tenant,
            **state.terms.model_dump(),
            "keys": [{"key_id": key_id, "expires_at": expires_at} for key_id, expires_at in state.keys.items()],
        }
        return state_answer(call.headers, state.version, content)

    def issue_key(self, name: SlugPath, body: IssueKeyRequest, request: Request) -> Response:
        """A new API key. `api_key` is shown here and nowhere else; a repeat with the same Idempotency-Key shows it again.

        To the same caller only: under another admin's key the Idempotency-Key is refused as used."""
        call = self._app.authorize(request, "admin")
        key_id, nonce = KeyId(f"k-{uuid.uuid4().hex}"), secrets.token_hex(16)
        command = body.command(key_id, digest_of(_secret_of(call.secret, key_id, nonce).encode()).hex(), nonce)
        return self._app.run(call, ISSUE_KEY, name, command, body)

    def revoke_key(self, name: SlugPath, key_id: TextPath, request: Request, reason: str = "") -> Response:
        """The key stops working at every gateway within two seconds."""
        call = self._app.authorize(request, "admin")
        return self._app.run(call, REVOKE_KEY, name, RevokeApiKey(KeyId(key_id), reason[:REASON_CHARS_MAX]))


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
