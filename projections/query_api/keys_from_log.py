"""The API keys of the market as this process knows them: a fold of topic `accounts`, with each tenant's time zone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import orjson

from access.keys import KEYS_FORMAT, Keys
from events.facts.accounts import DEFAULT_TIMEZONE
from events.log.record import Coordinate


class KeysFromLog:
    """Implements `events.log.fold_runner.Fold`. `first_admin` is the digest of the first admin's key."""

    code_version = f"accounts-2 {KEYS_FORMAT}"

    def __init__(self, first_admin: bytes | None = None) -> None:
        self._first_admin = first_admin
        self.keys = Keys(first_admin)
        self._zones: dict[str, str] = {}

    def zone(self, tenant: str) -> str:
        """The default one for a caller without a tenant of its own, such as the first admin."""
        return self._zones.get(tenant, DEFAULT_TIMEZONE)

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        if name == "TenantCreated":
            self._zones[body["tenant"]] = body["timezone"]
        else:
            self.keys.apply(name, body)

    def dump(self) -> Iterator[bytes]:
        """The zones in one line, then a line for each key."""
        return chain((orjson.dumps(self._zones) + b"\n",), self.keys.dump())

    def load(self, state: bytes) -> None:
        zones, *lines, _ = state.split(b"\n")
        self._zones, self.keys = orjson.loads(zones), Keys.load(lines, self._first_admin)
