"""How many bytes of callers' bodies a gateway holds at once: for all, and for each tenant, so that nobody fills what others need.

A body is bounded, but four thousand connections that each stall one byte short of that bound would take the memory of the node.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from serving.refused import Refused

ALL_BYTES_MAX = 512 << 20
TENANT_BYTES_MAX = ALL_BYTES_MAX // 4


class Held:
    """Of one event loop."""

    def __init__(self) -> None:
        self.bytes = 0
        self._of: dict[str, int] = {}

    @contextmanager
    def body(self, tenant: str, size: int) -> Generator[None]:
        """Room for a body of at most `size` bytes, for as long as the call lasts. Raises Refused (429)."""
        mine = self._of.get(tenant, 0) + size
        if mine > TENANT_BYTES_MAX or self.bytes + size > ALL_BYTES_MAX:
            whose = "your calls" if mine > TENANT_BYTES_MAX else "the calls of all"
            message = f"{whose} under way hold as many bytes as there is room for"
            raise Refused(429, "too_many_bytes", message, "", "send fewer large calls at once, then retry", ((b"retry-after", b"1"),))
        self.bytes += size
        self._of[tenant] = mine
        try:
            yield
        finally:
            self.bytes -= size
            left = self._of[tenant] - size
            if left:
                self._of[tenant] = left
            else:
                del self._of[tenant]
