"""What waits for a version is bounded, in calls and in bytes, and whoever is too many is told at once."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from serving.gateway import batching
from serving.gateway.batching import Lane, ReplicaLost
from serving.inference import Inference, Predicted
from serving.refused import Refused
from serving.replicas.batch_codec import pack_reply, unpack


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


def test_a_flight_does_not_run_in_the_context_of_one_of_its_passengers() -> None:
    """Serve finds the calls of a request by its context, and cancels them with it: also those that carry others."""
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")
    seen: list[str] = []

    class Seeing:
        async def call(self, address: str, blob: bytes) -> bytes:
            seen.append(whose.get())
            raise ReplicaLost(address)

    async def travel() -> None:
        whose.set("a caller's")
        lane = Lane("model-a-b-c-v1.0.0", Seeing(), 1, 1, 1.0)
        calls = [lane.board(sized(1)) for _ in range(3)]
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(travel())
    assert seen == ["nobody's"] * 3


def test_a_cancelled_flight_leaves_nobody_waiting() -> None:
    class Cancelling:
        async def call(self, address: str, blob: bytes) -> bytes:
            raise asyncio.CancelledError

    async def travel() -> list[object]:
        lane = Lane("model-a-b-c-v1.0.0", Cancelling(), 8, 1, 1.0)
        calls = [lane.board(sized(1)) for _ in range(2)]
        return list(await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5))

    assert [type(e) for e in asyncio.run(travel())] == [ReplicaLost] * 2


class Ward:
    """A replica that is lost with every blob that has the poison; notes who was in the air together."""

    def __init__(self, poison: bytes) -> None:
        self.poison, self.air, self.together = poison, 0, list[int]()

    async def call(self, address: str, blob: bytes) -> bytes:
        self.air += 1
        await asyncio.sleep(0)
        self.together.append(self.air)
        self.air -= 1
        if self.poison in blob:
            raise ReplicaLost(address)
        runs = unpack(blob)
        return pack_reply("r", [Predicted((), 0) for run in runs for _ in run.rows])


def told(text: bytes) -> Inference:
    return Inference("", 1, ((),), (text,), ((0, False),))


def test_who_is_sent_alone_is_alone_with_the_replica() -> None:
    async def travel() -> list[int]:
        ward = Ward(b"poison")
        lane = Lane("model-a-b-c-v1.0.0", ward, 1, 4, 1.0)
        calls = [lane.board(told(b"good-%d" % n), alone=n == 2) for n in range(5)]
        await asyncio.gather(*calls)
        assert lane.idle
        return ward.together

    together = asyncio.run(travel())
    assert together[2] == 1 and max(together) > 1  # the third by itself, the others side by side


def test_an_input_that_was_alone_twice_when_its_replica_was_lost_is_refused_and_others_are_not() -> None:
    async def travel() -> None:
        lane = Lane("model-a-b-c-v1.0.0", Ward(b"poison"), 8, 2, 1.0)
        poison = told(b"poison")
        with pytest.raises(ReplicaLost):
            await lane.board(poison, alone=True)
        beside = lane.board(told(b"beside")), lane.board(poison), lane.board(told(b"after"))  # its caller tries again: it goes alone
        lost = await asyncio.gather(*beside, return_exceptions=True)
        assert [isinstance(one, ReplicaLost) for one in lost] == [False, True, False]
        with pytest.raises(Refused, match="replica_lost_by_input") as refused:
            lane.board(poison)
        assert refused.value.status == 422
        await lane.board(told(b"good"))

    asyncio.run(travel())


def test_an_input_is_forgiven_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "SUSPECT_S", 0.0)

    async def travel() -> None:
        lane = Lane("model-a-b-c-v1.0.0", Ward(b"poison"), 8, 2, 1.0)
        for _ in range(3):
            with pytest.raises(ReplicaLost):
                await lane.board(told(b"poison"), alone=True)

    asyncio.run(travel())
