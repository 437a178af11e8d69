"""ClickHouse's own compression of an answer, for clients that ask with `compress=1`: the JDBC driver does, unless it is told not to.

An answer is a row of blocks. A block: CityHash128 of all that follows in it (16 bytes), the method (1 byte, 0x82 is LZ4), the size from
the method on and the size before compression (4 bytes each), the data. Numbers are little-endian; the hash is that of CityHash 1.0.2.
Source: ClickHouse, `src/Compression/CompressedWriteBuffer.cpp` and `ICompressionCodec.cpp`.
"""

from __future__ import annotations

import struct

import lz4.block
from clickhouse_cityhash.cityhash import CityHash128

BLOCK_BYTES_MAX = 1 << 20
"""Before compression; ClickHouse's own `max_compress_block_size`. A client holds one block at a time."""
_LZ4 = 0x82
_METHOD_AND_SIZES = struct.Struct("<BII")
_HALVES = struct.Struct("<QQ")


def compressed(body: bytes) -> bytes:
    """An empty answer stays empty."""
    whole = memoryview(body)
    return b"".join(_block(whole[at : at + BLOCK_BYTES_MAX]) for at in range(0, len(whole), BLOCK_BYTES_MAX))


def _block(piece: memoryview) -> bytes:
    data: bytes = lz4.block.compress(piece, store_size=False)
    hashed = _METHOD_AND_SIZES.pack(_LZ4, _METHOD_AND_SIZES.size + len(data), len(piece)) + data
    checksum: int = CityHash128(hashed)
    return _HALVES.pack(checksum >> 64, checksum & (1 << 64) - 1) + hashed
