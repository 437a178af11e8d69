"""Bounds the bytes of request bodies in memory: for all calls, and for each tenant, so that no tenant takes the room of others.

A body is bounded, but four thousand connections that each stall one byte short of that bound would take the memory of the node.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from serving.refused import Refused

ALL_BYTES_MAX = 512 << 20
TENANT_BYTES_MAX = ALL_BYTES_MAX // 4


class BodyMemoryLimiter:
    """Of one event loop. `bytes` are reserved now."""

    def __init__(self) -> None:
        self.bytes = 0
        self._bytes_of_tenant: dict[str, int] = {}

    @contextmanager
    def reserve(self, tenant: str, size: int) -> Generator[None]:
        """Room for a body of at most `size` bytes, for as long as the call lasts. Raises Refused (429)."""
        tenant_bytes = self._bytes_of_tenant.get(tenant, 0) + size
        if tenant_bytes > TENANT_BYTES_MAX or self.bytes + size > ALL_BYTES_MAX:
            whose = "your calls" if tenant_bytes > TENANT_BYTES_MAX else "the calls of all"
            message = f"{whose} under way have as many bytes as the gateway has room for"
            raise Refused(
                429, "too_many_bytes", message, "", "send fewer large calls at once, then retry", headers=((b"retry-after", b"1"),)
            )
        self.bytes += size
        self._bytes_of_tenant[tenant] = tenant_bytes
        try:
            yield
        finally:
            self.bytes -= size
            left = self._bytes_of_tenant[tenant] - size
            if left:
                self._bytes_of_tenant[tenant] = left
            else:
                del self._bytes_of_tenant[tenant]
