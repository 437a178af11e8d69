"""Who asks the local ClickHouse: one of our own roles with its password, or an analyst with an API key of the market that may `read`."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import httpx

from access.codes import SECRET_CHARS_MAX
from infra.clickhouse_local.grants import Role

KNOWN_S_MAX, KNOWN_MAX = 1.0, 10_000
"""How long an answer about a key holds, so that a revoked one stops within two seconds (K5); and how many are remembered."""
ASK_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant` is empty for our own roles."""

    role: Role
    tenant: str = ""


class KeysUnavailable(Exception):
    """Whether a key is valid cannot be known now."""


Ask = Callable[[str], Awaitable[str | None]]
"""API key → its tenant, if the key may read. Raises KeysUnavailable."""


class SignIn:
    """`passwords` are those of our own roles; every other user is an analyst, whose password is an API key."""

    def __init__(self, passwords: Mapping[Role, str], ask: Ask) -> None:
        self._digests = dict[Role, bytes]()
        for role, password in passwords.items():
            self._digests[role] = sha256(password.encode()).digest()
        self._ask = ask
        self._known = OrderedDict[bytes, tuple[float, str | None]]()

    async def caller(self, user: str, password: str) -> Caller | None:
        """None: this user does not have this password. Raises KeysUnavailable."""
        digest = sha256(password.encode()).digest()
        for role, expected in self._digests.items():
            if role == user:
                return Caller(role) if hmac.compare_digest(digest, expected) else None
        if not 0 < len(password) <= SECRET_CHARS_MAX or not all("!" <= c <= "~" for c in password):
            return None
        tenant = await self._tenant(digest, password)
        return Caller("analyst", tenant) if tenant else None

    async def _tenant(self, digest: bytes, key: str) -> str | None:
        now, known = time.monotonic(), self._known.get(digest)
        if known is None or known[0] < now:
            known = self._known[digest] = (now + KNOWN_S_MAX, await self._ask(key))
            self._known.move_to_end(digest)
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return known[1]


def ask_query_api(url: str) -> Ask:
    """The query API folds the keys already, and knows when they are too old (K5)."""
    client = httpx.AsyncClient(base_url=url, timeout=ASK_S_MAX, trust_env=False)

    async def ask(key: str) -> str | None:
        try:
            answer = await client.get("/v1/caller", headers={"Authorization": f"Bearer {key}"})
            if answer.status_code in (401, 403):
                return None
            found: dict[str, Any] = answer.raise_for_status().json()
            return str(found["tenant"])
        except (httpx.HTTPError, ValueError, KeyError) as e:
            raise KeysUnavailable(f"the query API does not say whose key this is: {type(e).__name__}") from e

    return ask


def is_foreign(headers: Mapping[str, str], own_hosts: frozenset[str]) -> bool:
    """Whether a browser's page of another site sent the request, or it came by a foreign host name (DNS rebinding)."""
    host = _host_of(f"//{headers.get('host', '')}")
    if host not in own_hosts and not _is_address(host):
        return True
    origin = headers.get("origin")
    return origin is not None and (urlsplit(origin).netloc != headers.get("host") or urlsplit(origin).scheme not in ("http", "https"))


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
