"""The bearer token of a request (RFC 6750): out of the header, within bounds, and hashed."""

from __future__ import annotations

import base64
import hashlib
import re

from access.codes import KEY_MALFORMED, KEY_MISSING, PREFIX, SECRET_CHARS_MAX, Refusal

_SECRET = rb"[\x21-\x7e]{1,%d}" % SECRET_CHARS_MAX
_HEADER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] {1,8}(%b) {0,8}" % _SECRET)
ENTROPY_BYTES = 32


def secret_of(header: bytes | None) -> bytes | Refusal:
    """The secret in the value of an Authorization header; None or empty: there is none. Longer headers are not hashed."""
    if not header:
        return KEY_MISSING
    found = _HEADER.fullmatch(header)
    return KEY_MALFORMED if found is None else found[1]


def digest_of(secret: bytes) -> bytes:
    """SHA-256 of a secret, 32 bytes: what a key is known by. The secret itself is kept nowhere."""
    return hashlib.sha256(secret).digest()


def api_key(entropy: bytes) -> str:
    """A new key's secret, made of 32 random bytes."""
    assert len(entropy) == ENTROPY_BYTES
    return PREFIX + base64.urlsafe_b64encode(entropy).rstrip(b"=").decode()


def first_admin_digest(secret: str) -> bytes:
    """Of the first admin's key. Raises ValueError when no header could carry it."""
    if re.fullmatch(_SECRET, secret.encode("utf-8", "replace")) is None:
        raise ValueError(f"the first admin's key must be 1 to {SECRET_CHARS_MAX} visible ASCII characters without spaces")
    return digest_of(secret.encode())
