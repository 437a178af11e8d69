"""Whose key is this, and what may it do: a fold of the store's own account facts, brought up to date before every answer."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.processor.rejection import Rejected, forbidden
from commands.store.event_store import EVENTS_READ_MAX, Event, Store
from commands.store.stored_record import unpack
from events.facts.accounts import ApiKeyIssued, ApiKeyRevoked, Scope, TenantCreated
from events.facts.fact import KeyId, TenantId, Timestamp, UserId
from events.process.settings import Settings
from events.schema.codec import Codec

PLATFORM = TenantId("platform")
"""The tenant of the first admin's key: the market's operator."""
ADMIN_USER = UserId("admin")
NAMES = (TenantCreated.__name__, ApiKeyIssued.__name__, ApiKeyRevoked.__name__)
SECRET_PREFIX = "mm_"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `admin` may do everything, for everybody."""

    tenant: TenantId
    user: UserId
    key_id: KeyId
    scopes: frozenset[Scope]

    def may(self, *scopes: Scope) -> bool:
        return "admin" in self.scopes or any(s in self.scopes for s in scopes)

    def acts_for(self, tenant: str) -> bool:
        return "admin" in self.scopes or self.tenant == tenant


@dataclass(frozen=True, slots=True)
class NotRecognised:
    """The caller has to show another key. `code` says what is wrong with this one."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class _Key:
    principal: Principal
    expires_at: Timestamp | None
    revoked: bool = False


class Access:
    """Thread-safe. Revocations by other processes are seen at the next call: the store is asked each time."""

    def __init__(self, store: Store, codec: Codec, admin_sha256: str) -> None:
        self._store, self._codec = store, codec
        admin = Principal(PLATFORM, ADMIN_USER, KeyId("first-admin"), frozenset[Scope]({"admin"}))
        self._keys: dict[str, _Key] = {admin_sha256: _Key(admin, None)}
        self._hash_of: dict[tuple[str, str], str] = {}
        self._seen = 0
        self._lock = threading.Lock()

    def recognise(self, secret: str, now: Timestamp) -> Principal | NotRecognised:
        """The caller behind a bearer secret."""
        self.catch_up()
        key = self._keys.get(sha256_of(secret))
        if key is None:
            return NotRecognised("key_unknown", "this API key is not known")
        if key.revoked:
            return NotRecognised("key_revoked", "this API key was revoked")
        if key.expires_at is not None and key.expires_at <= now:
            return NotRecognised("key_expired", "this API key has ended")
        return key.principal

    def catch_up(self) -> None:
        with self._lock:
            newest = self._store.last_position()
            while self._seen < newest:
                page = self._store.notifications(self._seen, names=NAMES, until=newest)
                for event in page:
                    self._apply(event)
                self._seen = page[-1].position if len(page) == EVENTS_READ_MAX else newest

    def _apply(self, event: Event) -> None:
        name, body = self._codec.decode(unpack(event.state).frame)
        self._fold(name, body)

    def _fold(self, name: str, body: Mapping[str, Any]) -> None:
        match name:
            case "TenantCreated":
                pass
            case "ApiKeyIssued":
                principal = Principal(body["tenant"], body["user"], body["key_id"], frozenset(body["scopes"]))
                self._keys[body["key_sha256"]] = _Key(principal, body["expires_at"])
                self._hash_of[body["tenant"], body["key_id"]] = body["key_sha256"]
            case "ApiKeyRevoked":
                digest = self._hash_of[body["tenant"], body["key_id"]]
                self._keys[digest] = _Key(self._keys[digest].principal, self._keys[digest].expires_at, revoked=True)
            case _:
                raise AssertionError(f"{name} is no account fact")


def needs(principal: Principal, *scopes: Scope) -> Rejected | None:
    """A refusal unless one of the scopes is there."""
    if principal.may(*scopes):
        return None
    return forbidden("scope_missing", f"this key lacks the scope {' or '.join(scopes)}", "Authorization", "ask an admin for a key with it")


def sha256_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def admin_secret(settings: Settings) -> str:
    """The first admin's key: the setting, else the file in the data folder, minted when missing."""
    given = settings.admin_key.get_secret_value()
    if given:
        return given
    file = settings.folder / "admin.key"
    if not file.exists():
        _mint(file)
    return file.read_text().strip()


def _mint(file: Path) -> None:
    """Written beside and linked into place: two processes at once agree on one key, and no reader sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".admin.key.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as f:
            f.write(SECRET_PREFIX + secrets.token_urlsafe(32) + "\n")
            f.flush()
            os.fsync(f.fileno())
        try:
            os.link(part, file)
        except FileExistsError:
            return
    finally:
        part.unlink()
