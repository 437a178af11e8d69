"""The fold of API keys: who holds a secret now, and what a snapshot keeps of it (K5)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.bearer import digest_of
from access.codes import KEY_EXPIRED, KEY_MALFORMED, KEY_MISSING, KEY_REVOKED, KEY_UNKNOWN
from access.keys import UNPACKED_MAX, Keys
from access.principal import FIRST_ADMIN, Principal
from events.facts.accounts import KEY_DIMENSIONS

NOW = 1_000


def digest(n: int) -> bytes:
    return hashlib.sha256(b"%d" % n).digest()


def issued(n: int, **more: Any) -> dict[str, Any]:
    who = {"tenant": f"t{n % 7}", "key_id": f"k{n}", "user": "u", "scopes": ["invoke"], "labels": {"n": str(n)}, "expires_at": None}
    return who | dict.fromkeys(KEY_DIMENSIONS, "") | {"key_sha256": digest(n).hex()} | more


def restored(keys: Keys) -> Keys:
    return Keys.load(b"".join(keys.dump()).split(b"\n")[:-1])


def test_a_key_works_from_its_issue_until_it_expires() -> None:
    keys = Keys()
    assert keys.identify(digest(1), NOW) is KEY_UNKNOWN
    keys.issue(issued(1, expires_at=NOW))
    assert isinstance(keys.identify(digest(1), NOW - 1), Principal)
    assert keys.identify(digest(1), NOW) is KEY_EXPIRED


def test_revoked_expired_and_unknown_keys_are_distinguished_also_after_a_restart() -> None:
    keys = Keys()
    for n in range(4):
        keys.apply("ApiKeyIssued", issued(n, expires_at=NOW if n == 3 else None))
    keys.apply("ApiKeyRevoked", {"tenant": "t2", "key_id": "k2"})
    keys.apply("TenantCreated", {"tenant": "t2"})
    for fold in (keys, restored(keys), restored(restored(keys))):
        assert isinstance(fold.identify(digest(1), NOW), Principal)
        assert fold.identify(digest(2), NOW) is KEY_REVOKED
        assert fold.identify(digest(3), NOW) is KEY_EXPIRED
        assert fold.identify(digest(4), NOW) is KEY_UNKNOWN
        assert len(fold) == 3


def test_a_key_that_was_used_stops_working_when_it_is_revoked() -> None:
    keys = Keys()
    keys.issue(issued(1))
    assert isinstance(keys.identify(digest(1), NOW), Principal)
    keys.revoke("t1", "k1")
    assert keys.identify(digest(1), NOW) is KEY_REVOKED
    keys.revoke("t1", "k1")
    keys.revoke("t1", "never issued")
    assert keys.identify(digest(1), NOW) is KEY_REVOKED


def test_a_restored_key_has_every_dimension_and_can_be_revoked() -> None:
    keys = Keys()
    words = {name: name[:1] if number else "" for number, name in enumerate(KEY_DIMENSIONS)}
    keys.issue(issued(1, tenant='a"\\', key_id="钥匙\n", expires_at=NOW + 5, scopes=["read", "invoke"], **words))
    keys.issue(issued(2))
    then = restored(keys)
    found = then.identify(digest(1), NOW)
    assert found == keys.identify(digest(1), NOW)
    assert found == Principal('a"\\', "u", "钥匙\n", frozenset({"read", "invoke"}), words, {"n": "1"})  # pyright: ignore[reportArgumentType]
    then.revoke('a"\\', "钥匙\n")
    assert then.identify(digest(1), NOW) is KEY_REVOKED and isinstance(then.identify(digest(2), NOW), Principal) and len(then) == 1


def test_a_key_issued_again_is_not_the_one_that_was_used_before() -> None:
    keys = Keys()
    keys.issue(issued(1))
    assert keys.identify(digest(1), NOW) is keys.identify(digest(1), NOW)
    keys.issue(issued(1, scopes=["read"]))
    found = keys.identify(digest(1), NOW)
    assert isinstance(found, Principal) and found.scopes == {"read"}


def test_the_first_admins_key_is_known_where_it_was_given_and_is_in_no_snapshot() -> None:
    secret = digest_of(b"mm_first")
    keys = Keys(secret)
    assert keys.identify(secret, NOW) is FIRST_ADMIN and len(keys) == 0
    assert restored(keys).identify(secret, NOW) is KEY_UNKNOWN
    assert Keys.load([], secret).identify(secret, NOW) is FIRST_ADMIN


@pytest.mark.parametrize("header", [b"Bearer mm_a", b"bearer mm_a", b"Bearer  mm_a", b"Bearer mm_a "])
def test_every_spelling_of_a_header_finds_the_key(header: bytes) -> None:
    keys = Keys()
    keys.issue(issued(1, key_sha256=digest_of(b"mm_a").hex()))
    assert isinstance(keys.authenticate(header, NOW), Principal)
    keys.revoke("t1", "k1")
    assert keys.authenticate(header, NOW) is KEY_REVOKED
    assert keys.authenticate(header + b"b", NOW) is (KEY_MALFORMED if header.endswith(b" ") else KEY_UNKNOWN)


def test_a_header_without_a_key_is_distinguished_from_an_unknown_key() -> None:
    keys = Keys()
    assert keys.authenticate(None, NOW) is KEY_MISSING
    assert keys.authenticate(b"Basic YTpi", NOW) is KEY_MALFORMED
    assert keys.authenticate(b"Bearer " + b"x" * 201, NOW) is KEY_MALFORMED
    assert keys.authenticate(b"Bearer two words", NOW) is KEY_MALFORMED
    assert keys.authenticate(b"Bearer " + b"x" * 200, NOW) is KEY_UNKNOWN


def test_unpacked_keys_are_bounded() -> None:
    keys = Keys()
    for n in range(UNPACKED_MAX + 2):
        keys.issue(issued(n))
        assert isinstance(keys.identify(digest(n), NOW), Principal)
    assert len(keys._unpacked) <= UNPACKED_MAX  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("line", [b"0" * 64 + b"[]", b"not a key", b"0" * 63])
def test_a_line_that_is_no_key_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        Keys.load([line])


@given(st.lists(st.tuples(st.sampled_from(("issue", "revoke", "snapshot")), st.integers(0, 9)), max_size=60))
def test_the_packed_fold_agrees_with_a_plain_one(history: list[tuple[str, int]]) -> None:
    keys, working, revoked = Keys(), set[int](), set[int]()
    for what, n in history:
        if what == "snapshot":
            keys = restored(keys)
        elif what == "issue" and n not in revoked:  # key ids and secrets are random: none is issued twice
            keys.issue(issued(n))
            working.add(n)
        elif what == "revoke" and n in working:
            keys.revoke(f"t{n % 7}", f"k{n}")
            working.discard(n)
            revoked.add(n)
    for n in range(10):
        found = keys.identify(digest(n), NOW)
        assert isinstance(found, Principal) if n in working else found is (KEY_REVOKED if n in revoked else KEY_UNKNOWN)
    assert len(keys) == len(working)
