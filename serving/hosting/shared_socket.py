"""The gateway's listening socket: bound once, passed to each gateway process, and bound beside by the listener that comes after one that died."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_LISTENS = "0A"
"""The state of a listening socket in the kernel's table."""


def bind(host: str, port: int) -> socket.socket:
    """Bound and not yet listening: until `listen` no connection comes to it. Of one user, several may be bound to the port at once. Raises
    OSError when another program has it."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    bound.setblocking(False)
    return bound


def others_listen(own: socket.socket) -> bool:
    """Whether another socket than this listens on its port, and so takes a share of the connections once this one listens, too."""
    port, inode = own.getsockname()[1], str(os.fstat(own.fileno()).st_ino)
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENS and int(fields[1].partition(":")[2], 16) == port and fields[9] != inode:
            return True
    return False
