"""Random identifiers: one UUID per fact, per epoch, per key."""

from __future__ import annotations

import os
import uuid
from collections import deque

_ids: deque[str] = deque()
_IDS_AT_ONCE = 64
# A forked child must not use the ids that its parent will use.
os.register_at_fork(after_in_child=_ids.clear)


def new_id() -> str:
    """A random UUID (version 4, RFC 9562). Made 64 at a time: reading random bytes from the kernel releases the interpreter lock, which
    costs a gateway with many threads more than the rest of a fact's identity."""
    while True:
        try:
            return _ids.popleft()
        except IndexError:
            random = os.urandom(16 * _IDS_AT_ONCE)
            _ids.extend(str(uuid.UUID(bytes=random[i : i + 16], version=4)) for i in range(0, len(random), 16))
