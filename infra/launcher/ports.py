"""Ports of a stack: whether one is free, and a whole block that no other stack is about to take."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Generator
from contextlib import contextmanager

from events.process.file_lock import FileLock
from events.process.settings import PORTS_PER_STACK
from infra.launcher.failure import LaunchFailed
from infra.launcher.paths import SHORT

BLOCKS = range(26_000, 32_600, PORTS_PER_STACK)
"""Above the default stacks, below where the kernel takes the ports of outgoing connections from."""


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Connections of an earlier one that only linger do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@contextmanager
def free_block(host: str = "127.0.0.1") -> Generator[int]:
    """The base port of a free block, ours until the context ends: of two test runs that search at once, each finds another block.

    The lock files stay: one that is removed while another waits for it would be held by two."""
    for base in random.sample(BLOCKS, len(BLOCKS)):
        with FileLock(SHORT / f"mm-{os.getuid()}-block-{base}.lock") as lock:
            if lock.acquire() and all(is_free(host, base + offset) for offset in range(PORTS_PER_STACK)):
                yield base
                return
    raise LaunchFailed("no-free-block", f"no {PORTS_PER_STACK} free ports in a row", remedy="end stacks that are not needed any more")
