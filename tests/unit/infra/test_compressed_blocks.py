"""ClickHouse's compressed blocks, read back by somebody else's client, which checks the sum of each."""

from __future__ import annotations

import random

import pytest

from infra.clickhouse_local.compressed_blocks import BLOCK_BYTES_MAX, compressed
from tests.support.clickhouse.block_reader import read_back


@pytest.mark.parametrize("size", [0, 1, 17, BLOCK_BYTES_MAX - 1, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 1, 3 * BLOCK_BYTES_MAX + 5])
def test_every_byte_comes_back_in_bounded_blocks(size: int) -> None:
    for body in (random.Random(size).randbytes(size), b"naive "[:size] * (size // 6 + 1)):
        found = read_back(compressed(body))
        assert b"".join(found) == body
        assert all(len(block) <= BLOCK_BYTES_MAX for block in found) and len(found) == -(-len(body) // BLOCK_BYTES_MAX)
