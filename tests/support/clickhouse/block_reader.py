"""ClickHouse's compressed blocks, read by somebody else's client, which checks the sum of each."""

from __future__ import annotations

import socket
import threading
from typing import Any

from clickhouse_driver.bufferedreader import BufferedSocketReader
from clickhouse_driver.compression import get_decompressor_cls
from clickhouse_driver.reader import read_binary_uint8, read_binary_uint128


def read_back(blocks: bytes) -> list[bytes]:
    """What each block holds. Raises ChecksumDoesntMatchError."""
    theirs, ours = socket.socketpair()
    sender = threading.Thread(target=lambda: (ours.sendall(blocks), ours.close()))
    sender.start()
    reader: Any = BufferedSocketReader(theirs, 1 << 16)
    found = list[bytes]()
    while True:
        try:
            checksum = read_binary_uint128(reader)
        except EOFError:
            break
        method = read_binary_uint8(reader)
        found.append(bytes(get_decompressor_cls(method)(reader).get_decompressed_data(method, checksum, extra_header_size=1)))
    sender.join()
    theirs.close()
    return found
