"""Every API key of the market, packed: a million of them load in a second, and a copy of them costs next to nothing (K5).

A key is kept as the line it has in a snapshot, and unpacked when it is used. Lines are plain bytes, which Python's garbage collector
never looks at; as objects a million keys would stop every call for a second now and then. They lie in pages, and a page that
a snapshot still needs is copied before it is changed, so that a snapshot is of one moment however slowly it is written.
"""

from __future__ import annotations

from binascii import hexlify, unhexlify
from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import compress
from operator import itemgetter
from typing import Any, Self

import orjson

from access.bearer import digest_of, secret_of
from access.codes import KEY_EXPIRED, KEY_REVOKED, KEY_UNKNOWN, SECRET_CHARS_MAX, Refusal
from access.principal import FIRST_ADMIN, Principal
from events.facts.accounts import KEY_DIMENSIONS

PAGES = 256
"""By the first byte of the digest. A page of a million keys is four thousand of them: a millisecond to write, less to copy."""
UNPACKED_MAX = 20_000
"""Keys in use that are kept unpacked as well."""
DIGEST_CHARS = 64
KEYS_FORMAT = ",".join(("keys-2", *KEY_DIMENSIONS))
"""Part of the code version of every fold that keeps keys: lines of other dimensions are another format."""
SCHEME = b"Bearer "
SCHEME_BYTES = len(SCHEME)
HEADER_BYTES_MAX = SCHEME_BYTES + SECRET_CHARS_MAX
REVOKED = b""
"""The line of a revoked key. Its digest stays, so that the refusal names the reason."""

_PACKED = itemgetter("tenant", "key_id", "user", "scopes", "labels", "expires_at", *KEY_DIMENSIONS)
"""The fields of ApiKeyIssued that are kept, in the order of a line."""


class Keys:
    """SHA-256 of a secret → its principal. One thread writes, any may read. `first_admin` is known beside the facts, if given."""

    def __init__(self, first_admin: bytes | None = None) -> None:
        self._first_admin = first_admin
        self._pages: list[dict[bytes, bytes]] = [{} for _ in range(PAGES)]
        self._lent: set[int] = set()
        """Pages that a snapshot still reads."""
        self._digests: dict[bytes, bytes] = {}
        """Tenant and key id → digest, of keys that are not revoked."""
        self._unpacked: dict[bytes, tuple[bytes, Principal, int | None]] = {}

    def __len__(self) -> int:
        """Keys that are not revoked."""
        return len(self._digests)

    def authenticate(self, header: bytes | None, now_us: int) -> Principal | Refusal:
        """Who sends this Authorization header at this instant (µs UTC), or why it opens nothing. A good key in the usual spelling is
        found by its digest at once; only what is not found has its shape looked at."""
        if header is not None and len(header) <= HEADER_BYTES_MAX and header[:SCHEME_BYTES] == SCHEME:
            found = self.identify(sha256(header[SCHEME_BYTES:]).digest(), now_us)
            if found is not KEY_UNKNOWN:
                return found
        secret = secret_of(header)
        return secret if isinstance(secret, Refusal) else self.identify(digest_of(secret), now_us)

    def identify(self, digest: bytes, now_us: int) -> Principal | Refusal:
        """Who holds the secret of this digest at this instant (µs UTC), or why it opens nothing."""
        packed = self._pages[digest[0]].get(digest)
        if not packed:
            return self._not_issued(digest, packed)
        known = self._unpacked.get(digest)
        if known is None or known[0] is not packed:
            known = self._unpack(digest, packed)
        expires_at = known[2]
        return known[1] if expires_at is None or expires_at > now_us else KEY_EXPIRED

    def _not_issued(self, digest: bytes, packed: bytes | None) -> Principal | Refusal:
        if digest == self._first_admin:
            return FIRST_ADMIN
        return KEY_UNKNOWN if packed is None else KEY_REVOKED

    def _unpack(self, digest: bytes, packed: bytes) -> tuple[bytes, Principal, int | None]:
        tenant, key_id, user, scopes, labels, expires_at, *words = orjson.loads(packed)
        principal = Principal(tenant, user, key_id, frozenset(scopes), dict(zip(KEY_DIMENSIONS, words, strict=True)), labels)
        if len(self._unpacked) >= UNPACKED_MAX:
            self._unpacked.clear()
        self._unpacked[digest] = known = (packed, principal, expires_at)
        return known

    # --- facts

    def apply(self, name: str, body: Mapping[str, Any]) -> None:
        """One decoded fact of topic `accounts`; one that is not about keys changes nothing."""
        match name:
            case "ApiKeyIssued":
                self.issue(body)
            case "ApiKeyRevoked":
                self.revoke(body["tenant"], body["key_id"])
            case _:
                pass

    def issue(self, body: Mapping[str, Any]) -> None:
        """`body` is a whole ApiKeyIssued."""
        digest = bytes.fromhex(body["key_sha256"])
        packed = bytes(memoryview(orjson.dumps(_PACKED(body))))  # as long as it is: orjson's own bytes keep a kilobyte of memory each
        self._own_page(digest)[digest] = packed
        self._digests[_name(packed)] = digest

    def revoke(self, tenant: str, key_id: str) -> None:
        digest = self._digests.pop(_name(orjson.dumps((tenant, key_id))), None)
        if digest is not None:
            self._own_page(digest)[digest] = REVOKED
            self._unpacked.pop(digest, None)

    def _own_page(self, digest: bytes) -> dict[bytes, bytes]:
        """The page of a digest, to write on."""
        number = digest[0]
        if number in self._lent:
            self._pages[number] = dict(self._pages[number])
            self._lent.discard(number)
        return self._pages[number]

    # --- snapshots

    def dump(self) -> Iterator[bytes]:
        """The keys of now, page by page, a line each; whatever is written meanwhile is not in it."""
        lent = tuple(self._pages)
        self._lent = set(range(PAGES))
        return (b"".join([b"%b%b\n" % (hexlify(digest), packed) for digest, packed in page.items()]) for page in lent)

    @classmethod
    def load(cls, lines: list[bytes], first_admin: bytes | None = None) -> Self:
        """The keys of such lines. Raises ValueError."""
        keys = cls(first_admin)
        digests = [unhexlify(line[:DIGEST_CHARS]) for line in lines]
        packed = [line[DIGEST_CHARS:] for line in lines]
        for digest, line in zip(digests, packed, strict=True):
            keys._pages[digest[0]][digest] = line
        keys._digests = dict(zip(map(_name, filter(None, packed)), compress(digests, packed), strict=True))
        return keys


def _name(packed: bytes) -> bytes:
    """Tenant and key id, out of the packed line that begins with them."""
    if b"\\" in packed:
        tenant, key_id, *_ = orjson.loads(packed)
        return f"{tenant}\0{key_id}".encode()
    _, tenant, _, key_id, _ = packed.split(b'"', 4)
    return tenant + b"\0" + key_id
