"""Bodies too large for a fact, by digest: stored once per tenant, checked on every read. The only file that imports obstore.

`file:///folder` on a laptop, `s3://bucket/prefix` (S3, MinIO) in production: the same calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
from obstore.store import LocalStore, S3Store

from events.process.settings import Settings

CHUNK_BYTES = 1 << 20


class ArtifactMissing(Exception):
    """No such artifact for this tenant."""


class ArtifactCorrupt(Exception):
    """The stored bytes are not the ones the digest names: never load them."""


class Artifacts:
    """Content-addressed and tenant-scoped: knowing a digest gives nothing to another tenant."""

    def __init__(self, settings: Settings) -> None:
        self._store: Any = _open(settings)

    def put(self, tenant: str, digest: str, file: Path) -> None:
        """Stores a file whose SHA-256 the caller has checked. The same digest again changes nothing."""
        obstore.put(self._store, _path(tenant, digest), file)

    def size(self, tenant: str, digest: str) -> int:
        """Bytes of an artifact. Raises ArtifactMissing."""
        try:
            return int(obstore.head(self._store, _path(tenant, digest))["size"])
        except FileNotFoundError as e:
            raise ArtifactMissing(f"{digest} of {tenant}") from e

    def read(self, tenant: str, digest: str) -> bytes:
        """The whole body, its digest verified. Raises ArtifactMissing, ArtifactCorrupt."""
        body = b"".join(self._stream(tenant, digest))
        found = hashlib.sha256(body).hexdigest()
        if f"sha256:{found}" != digest:
            raise ArtifactCorrupt(f"{digest} of {tenant} holds sha256:{found}")
        return body

    def _stream(self, tenant: str, digest: str) -> Iterator[bytes]:
        try:
            for chunk in obstore.get(self._store, _path(tenant, digest)).stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
        except FileNotFoundError as e:
            raise ArtifactMissing(f"{digest} of {tenant}") from e


def _path(tenant: str, digest: str) -> str:
    algorithm, _, hexadecimal = digest.partition(":")
    if algorithm != "sha256" or len(hexadecimal) != 64 or not set(hexadecimal) <= set("0123456789abcdef"):
        raise ArtifactMissing(f"{digest!r} is no sha256 digest")
    if "/" in tenant or tenant in ("", ".", ".."):
        raise ArtifactMissing(f"{tenant!r} is no tenant")
    return f"{tenant}/{hexadecimal[:2]}/{hexadecimal}"


def _open(settings: Settings) -> Any:
    url = settings.artifacts
    if url.startswith("file://"):
        return LocalStore(url.removeprefix("file://"), mkdir=True)
    config: Any = {"region": settings.s3_region}
    if settings.s3_endpoint:
        config |= {"endpoint": settings.s3_endpoint, "virtual_hosted_style_request": False}
    if settings.s3_access_key:
        config |= {"access_key_id": settings.s3_access_key, "secret_access_key": settings.s3_secret_key.get_secret_value()}
    options: Any = {"allow_http": settings.s3_endpoint.startswith("http://"), "timeout": "60s"}
    return S3Store.from_url(url, config=config, client_options=options)
