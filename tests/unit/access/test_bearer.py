"""The form that an `Authorization` header must have before its key is looked up."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.bearer import api_key, digest_of, first_admin_digest, secret_of
from access.codes import KEY_MALFORMED, KEY_MISSING, SECRET_CHARS_MAX


@pytest.mark.parametrize("header", [b"Bearer mm_a", b"bearer mm_a", b"BEARER  mm_a", b"Bearer mm_a "])
def test_the_secret_is_what_follows_the_scheme(header: bytes) -> None:
    assert secret_of(header) == b"mm_a"


@pytest.mark.parametrize("header", [None, b""])
def test_an_absent_or_empty_header_holds_no_key(header: bytes | None) -> None:
    assert secret_of(header) is KEY_MISSING


@pytest.mark.parametrize(
    "header",
    [
        *(b" ", b"Bearer", b"Bearer ", b"Basic x", b"mm_a", b"Bearer a b", b"Bearer a\n", b"Bearer \xe9", b"Bearer a\x00", b"Bearermm_a"),
        *(b"Bearer " + b"x" * (SECRET_CHARS_MAX + 1), b"Bearer" + b" " * 9 + b"a", b"Bearer " + b"x" * 100_000),
    ],
)
def test_a_header_of_another_shape_is_malformed(header: bytes) -> None:
    assert secret_of(header) is KEY_MALFORMED


@given(st.binary(max_size=400))
def test_any_header_gives_a_bounded_secret_or_a_refusal(header: bytes) -> None:
    found = secret_of(header)
    if isinstance(found, bytes):
        assert 0 < len(found) <= SECRET_CHARS_MAX
        assert header.lower().startswith(b"bearer ") and header.strip().endswith(found)


@given(st.binary(min_size=32, max_size=32))
def test_an_issued_secret_passes_through_a_header(entropy: bytes) -> None:
    secret = api_key(entropy)
    assert secret.startswith("mm_") and len(secret) == 46
    assert secret_of(b"Bearer " + secret.encode()) == secret.encode()


def test_a_key_is_known_by_the_sha256_of_its_secret() -> None:
    assert digest_of(b"mm_a") == hashlib.sha256(b"mm_a").digest()
    assert first_admin_digest("mm_a") == digest_of(b"mm_a")


@pytest.mark.parametrize("secret", ["", "two words", "x" * (SECRET_CHARS_MAX + 1), "ключ", "line\n"])
def test_a_first_admins_key_that_no_header_could_carry_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(ValueError, match="first admin"):
        first_admin_digest(secret)
