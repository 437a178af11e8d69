"""What the query API keeps of the accounts, and brings back from a snapshot."""

from __future__ import annotations

from typing import Any

import pytest

from access.bearer import digest_of
from access.codes import KEY_REVOKED
from access.principal import FIRST_ADMIN, Principal
from events.facts.accounts import DEFAULT_TIMEZONE, KEY_DIMENSIONS
from events.log.record import Coordinate
from projections.query_api.keys_from_log import KeysFromLog

AT = Coordinate("accounts", 0, 0)
ADMIN = digest_of(b"mm_admin")


def folded() -> KeysFromLog:
    accounts = KeysFromLog(ADMIN)
    for name, more in (("works", {}), ("revoked", {"scopes": ["read", "models"]})):
        body: dict[str, Any] = {"tenant": "acme", "key_id": name, "user": "u", "scopes": ["read"], "labels": {}, "expires_at": None}
        body |= dict.fromkeys(KEY_DIMENSIONS, "") | more
        accounts.apply("ApiKeyIssued", body | {"key_sha256": digest_of(f"mm_{name}".encode()).hex()}, AT)
    accounts.apply("ApiKeyRevoked", {"tenant": "acme", "key_id": "revoked"}, AT)
    accounts.apply("TenantCreated", {"tenant": "acme", "timezone": "Europe/Berlin"}, AT)
    accounts.apply("StoreOpened", {"store": "s"}, AT)
    return accounts


def test_a_snapshot_brings_back_keys_zones_and_the_first_admin() -> None:
    again = KeysFromLog(ADMIN)
    again.load(b"".join(folded().dump()))
    for accounts in (folded(), again):
        assert isinstance(accounts.keys.authenticate(b"Bearer mm_works", 0), Principal)
        assert accounts.keys.authenticate(b"Bearer mm_revoked", 0) is KEY_REVOKED
        assert accounts.keys.authenticate(b"Bearer mm_admin", 0) is FIRST_ADMIN
        assert (accounts.zone("acme"), accounts.zone("")) == ("Europe/Berlin", DEFAULT_TIMEZONE)


@pytest.mark.parametrize("state", [b"", b"{}", b"[[],[],[]", b"{}\nnot a key\n", b"no json\n"])
def test_a_state_of_another_shape_is_refused_and_nothing_is_taken(state: bytes) -> None:
    accounts = folded()
    with pytest.raises(ValueError):
        accounts.load(state)
    assert isinstance(accounts.keys.authenticate(b"Bearer mm_works", 0), Principal)
