"""Who asks, and what may they see: API keys as an in-memory fold of the account facts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from events.log.record import Coordinate

PLATFORM = "platform"
KEY_CHARS_MAX = 200
"""A key has 46; nothing longer is hashed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `admin` may see everybody's."""

    tenant: str
    key_id: str
    scopes: frozenset[str]

    @property
    def admin(self) -> bool:
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        return self.admin or scope in self.scopes

    def sees_all_of(self, owner: str) -> bool:
        """Whether drafts and reviews of this tenant's models may be shown. Reviewers are the market's own, and see everybody's."""
        return self.tenant == owner or self.may("review:business") or self.may("review:security")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why this key does not open anything."""

    code: str
    message: str


class AccountKeys:
    """A `Fold` of topic accounts: the hash of each key and what it may do; zones of tenants beside it."""

    code_version = "1"

    def __init__(self, admin_key: str = "") -> None:
        self._keys: dict[str, dict[str, Any]] = {}
        self._hash_of: dict[str, str] = {}
        self._zones: dict[str, str] = {}
        self._admin = hashlib.sha256(admin_key.encode()).hexdigest() if admin_key else ""

    # --- what the follower feeds

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        match name:
            case "ApiKeyIssued":
                said = {n: body[n] for n in ("tenant", "key_id", "expires_at")}
                self._keys[body["key_sha256"]] = {**said, "scopes": list(body["scopes"]), "revoked": False}
                self._hash_of[f"{body['tenant']}/{body['key_id']}"] = body["key_sha256"]
            case "ApiKeyRevoked":
                known = self._hash_of.get(f"{body['tenant']}/{body['key_id']}")
                if known:
                    self._keys[known] = {**self._keys[known], "revoked": True}
            case "TenantCreated":
                self._zones[body["tenant"]] = body["timezone"]
            case _:
                pass  # StoreOpened and account facts of other folds say nothing about keys

    def dump(self) -> bytes:
        return json.dumps([self._keys, self._hash_of, self._zones]).encode()

    def load(self, state: bytes) -> None:
        self._keys, self._hash_of, self._zones = json.loads(state)

    # --- what the API asks

    def zone(self, tenant: str) -> str:
        return self._zones.get(tenant, "Asia/Shanghai")

    def recognise(self, secret: str, now_us: int) -> Caller | Refusal:
        if not secret or len(secret) > KEY_CHARS_MAX:
            return Refusal("key_missing", "this needs an API key")
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if self._admin and digest == self._admin:
            return Caller(PLATFORM, "first-admin", frozenset({"admin"}))
        key = self._keys.get(digest)
        if key is None:
            return Refusal("key_unknown", "this API key is not known")
        if key["revoked"]:
            return Refusal("key_revoked", "this API key was revoked")
        if key["expires_at"] is not None and key["expires_at"] <= now_us:
            return Refusal("key_expired", "this API key has ended")
        return Caller(key["tenant"], key["key_id"], frozenset(key["scopes"]))
