"""What waits for a version is bounded, in calls and in bytes, and whoever is too many is told at once."""

from __future__ import annotations

import asyncio

import pytest

from serving import batching
from serving.batching import Lane, ReplicaLost
from serving.refusal import Refused
from serving.tensors import Inference


class Gone:
    """A replica that is lost with whatever it is sent."""

    async def call(self, address: str, blob: bytes) -> bytes:
        raise ReplicaLost(address)


def sized(count: int) -> Inference:
    return Inference("", 1, ((),), (bytes(count),), ((0, False),))


def test_large_calls_that_wait_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "QUEUE_BYTES_MAX", 1000)

    async def flood() -> None:
        lane = Lane("model-a-b-c-v1.0.0", Gone(), 8, 1, 1.0)
        for _ in range(3):  # what has left or was lost makes room again
            waiting = [lane.board(sized(400)), lane.board(sized(400)), lane.board(sized(200))]
            with pytest.raises(Refused, match="overloaded") as refused:
                lane.board(sized(1))
            assert refused.value.status == 429
            assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [ReplicaLost] * 3
        assert lane._waiting_bytes == 0  # pyright: ignore[reportPrivateUsage]

    asyncio.run(flood())
