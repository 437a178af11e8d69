"""Every API key of the market, packed: a million of them load in a second, and a copy of them is had for nothing.

A key is kept as the line it has in a snapshot, and unpacked when it is used. Lines are plain bytes, which Python's collector
never looks at; as objects a million keys would stop every call for a second now and then. They lie in pages, and a page that
a snapshot still needs is copied before it is changed, so that a snapshot is of one moment however slowly it is written.
"""

from __future__ import annotations

from binascii import hexlify, unhexlify
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from events.facts.accounts import KEY_DIMENSIONS

PAGES = 256
"""By the first byte of the digest. A page of a million keys is four thousand of them: a millisecond to write, less to copy."""
KNOWN_MAX = 20_000
"""Keys in use that are kept unpacked as well."""
DIGEST_CHARS = 64


@dataclass(frozen=True, slots=True)
class Key:
    """What one API key may do, and the dimensions it writes on every usage fact."""

    tenant: str
    key_id: str
    user: str
    scopes: frozenset[str]
    dimensions: Mapping[str, str]
    """Those of the key that are not empty, by name: see `KeyDimensions`."""
    labels: Mapping[str, str]
    expires_at: int | None


class Keys:
    """SHA-256 of a key → what it may do; a revoked key is not here. One thread writes, any may read."""

    def __init__(self) -> None:
        self._pages: list[dict[bytes, bytes]] = [{} for _ in range(PAGES)]
        self._lent: set[int] = set()
        """Pages that a snapshot still reads."""
        self._digests: dict[bytes, bytes] = {}
        """Tenant and key id → digest."""
        self._known: dict[bytes, tuple[bytes, Key]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._pages))

    def get(self, digest: bytes) -> Key | None:
        packed = self._pages[digest[0]].get(digest)
        if packed is None:
            return None
        known = self._known.get(digest)
        if known is not None and known[0] is packed:
            return known[1]
        tenant, key_id, user, scopes, dimensions, labels, expires_at = orjson.loads(packed)
        key = Key(tenant, key_id, user, frozenset(scopes), dimensions, labels, expires_at)
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[digest] = (packed, key)
        return key

    # --- what the facts say

    def issue(self, body: Mapping[str, Any]) -> None:
        """`body` is an ApiKeyIssued."""
        get, digest = body.get, bytes.fromhex(body["key_sha256"])
        who = (body["tenant"], body["key_id"], body["user"], body["scopes"])
        dimensions = {name: value for name in KEY_DIMENSIONS if (value := get(name))}
        written = orjson.dumps((*who, dimensions, get("labels") or {}, get("expires_at")))
        packed = bytes(memoryview(written))  # as long as it is: orjson's own bytes keep a kilobyte of memory each
        self._mine(digest)[digest] = packed
        self._digests[_name(packed)] = digest

    def revoke(self, tenant: str, key_id: str) -> None:
        digest = self._digests.pop(_name(orjson.dumps((tenant, key_id))), None)
        if digest is not None:
            self._mine(digest).pop(digest, None)
            self._known.pop(digest, None)

    def _mine(self, digest: bytes) -> dict[bytes, bytes]:
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
    def load(cls, lines: list[bytes]) -> Keys:
        """The keys of such lines. Raises ValueError."""
        keys = cls()
        digests = [unhexlify(line[:DIGEST_CHARS]) for line in lines]
        packed = [line[DIGEST_CHARS:] for line in lines]
        for digest, line in zip(digests, packed, strict=True):
            keys._pages[digest[0]][digest] = line
        keys._digests = dict(zip(map(_name, packed), digests, strict=True))
        return keys


def _name(packed: bytes) -> bytes:
    """Tenant and key id, out of the packed line that begins with them."""
    if b"\\" in packed:
        tenant, key_id, *_ = orjson.loads(packed)
        return f"{tenant}\0{key_id}".encode()
    _, tenant, _, key_id, _ = packed.split(b'"', 4)
    return tenant + b"\0" + key_id
