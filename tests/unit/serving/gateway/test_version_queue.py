"""The queue of a version is bounded, in calls and in bytes; calls of one batch fail independently (K16)."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from serving.gateway import version_queue
from serving.gateway.version_queue import VersionQueue
from serving.inference import Inference, Predicted
from serving.refused import Refused
from serving.replicas.batch_codec import pack_reply, unpack
from serving.replicas.model_replicas import ReplicaLost

TENANT = "acme"


class LostReplica:
    """A replica that is lost with each batch that it is sent."""

    async def call(self, address: str, blob: bytes) -> bytes:
        raise ReplicaLost(address)


def sized(count: int) -> Inference:
    return Inference("", 1, ((),), (bytes(count),), ((0, False),))


def test_large_calls_that_wait_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_queue, "QUEUE_BYTES_MAX", 2000)

    async def flood() -> None:
        queue = VersionQueue("model-a-b-c-v1.0.0", LostReplica(), batch_max=8, batches_max=1, timeout_s=1.0)
        for _ in range(3):  # calls that were answered or lost no longer count
            waiting = [queue.enqueue(TENANT, sized(400)), queue.enqueue(TENANT, sized(400)), queue.enqueue(TENANT, sized(200))]
            with pytest.raises(Refused, match="overloaded") as refused:
                queue.enqueue(TENANT, sized(1))
            assert refused.value.status == 429
            assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [ReplicaLost] * 3
        assert queue._waiting.bytes == 0  # pyright: ignore[reportPrivateUsage]

    asyncio.run(flood())


def alone(text: bytes) -> Inference:
    """A call that is a run of the model by itself."""
    return Inference("", 0, ((),), (text,), ((0, False),))


def test_a_call_waits_for_one_batch_whatever_another_tenant_has_waiting() -> None:
    """One of each tenant in turn (K28): behind ten thousand calls of one tenant, another's first call would wait for all of them."""
    batches: list[list[bytes]] = []

    class Noting:
        async def call(self, address: str, blob: bytes) -> bytes:
            runs = unpack(blob)
            batches.append([bytes(run.tensors[0]) for run in runs])
            return pack_reply("r", [Predicted((), 1) for _ in runs])

    async def run() -> None:
        queue = VersionQueue("model-a-b-c-v1.0.0", Noting(), batch_max=4, batches_max=1, timeout_s=1.0)
        calls = [queue.enqueue("loud", alone(b"loud-%d" % n)) for n in range(12)]
        calls += [queue.enqueue("quiet", alone(b"quiet-%d" % n)) for n in range(2)]
        await asyncio.gather(*calls)

    asyncio.run(run())
    assert batches[0] == [b"loud-0", b"quiet-0", b"loud-1", b"quiet-1"]
    assert [call for batch in batches[1:] for call in batch] == [b"loud-%d" % n for n in range(2, 12)]


def test_a_batch_does_not_run_in_the_context_of_one_of_its_calls() -> None:
    """Serve finds the Ray calls of a request by its context, and cancels them with it: also a batch with other requests in it."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    class Seeing:
        async def call(self, address: str, blob: bytes) -> bytes:
            seen.append(request.get())
            raise ReplicaLost(address)

    async def run() -> None:
        request.set("a caller's")
        queue = VersionQueue("model-a-b-c-v1.0.0", Seeing(), batch_max=1, batches_max=1, timeout_s=1.0)
        calls = [queue.enqueue(TENANT, sized(1)) for _ in range(3)]
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(run())
    assert seen == ["none"] * 3


def test_a_cancelled_batch_leaves_no_caller_waiting() -> None:
    class Cancelling:
        async def call(self, address: str, blob: bytes) -> bytes:
            raise asyncio.CancelledError

    async def run() -> list[object]:
        queue = VersionQueue("model-a-b-c-v1.0.0", Cancelling(), batch_max=8, batches_max=1, timeout_s=1.0)
        calls = [queue.enqueue(TENANT, sized(1)) for _ in range(2)]
        return list(await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5))

    assert [type(e) for e in asyncio.run(run())] == [ReplicaLost] * 2


def test_a_reply_to_fewer_calls_leaves_no_caller_waiting() -> None:
    class Forgetful:
        async def call(self, address: str, blob: bytes) -> bytes:
            return pack_reply("r", [Predicted((), 1)])

    async def run() -> list[object]:
        queue = VersionQueue("model-a-b-c-v1.0.0", Forgetful(), batch_max=8, batches_max=1, timeout_s=1.0)
        calls = [queue.enqueue(TENANT, sized(1)) for _ in range(2)]
        return list(await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5))

    assert [type(e) for e in asyncio.run(run())] == [ReplicaLost] * 2


class PoisonedReplica:
    """A replica that is lost with every batch that contains the poison; notes how many batches were under way together."""

    def __init__(self, poison: bytes) -> None:
        self.poison, self.under_way, self.together = poison, 0, list[int]()

    async def call(self, address: str, blob: bytes) -> bytes:
        self.under_way += 1
        await asyncio.sleep(0)
        self.together.append(self.under_way)
        self.under_way -= 1
        if self.poison in blob:
            raise ReplicaLost(address)
        runs = unpack(blob)
        return pack_reply("r", [Predicted((), 0) for run in runs for _ in run.rows])


def carrying(text: bytes) -> Inference:
    return Inference("", 1, ((),), (text,), ((0, False),))


def test_an_isolated_call_is_alone_with_the_replica() -> None:
    async def run() -> list[int]:
        replica = PoisonedReplica(b"poison")
        queue = VersionQueue("model-a-b-c-v1.0.0", replica, batch_max=1, batches_max=4, timeout_s=1.0)
        calls = [queue.enqueue(TENANT, carrying(b"good-%d" % n), isolated=n == 2) for n in range(5)]
        await asyncio.gather(*calls)
        assert queue.idle
        return replica.together

    together = asyncio.run(run())
    assert together[2] == 1 and max(together) > 1  # the third by itself, the others side by side


def test_an_input_that_was_alone_twice_when_its_replica_was_lost_is_refused_and_others_are_not() -> None:
    async def run() -> None:
        queue = VersionQueue("model-a-b-c-v1.0.0", PoisonedReplica(b"poison"), batch_max=8, batches_max=2, timeout_s=1.0)
        poison = carrying(b"poison")
        with pytest.raises(ReplicaLost):
            await queue.enqueue(TENANT, poison, isolated=True)
        beside = (
            queue.enqueue(TENANT, carrying(b"beside")),
            queue.enqueue(TENANT, poison),
            queue.enqueue(TENANT, carrying(b"after")),
        )  # its caller tries again: it is isolated
        lost = await asyncio.gather(*beside, return_exceptions=True)
        assert [isinstance(one, ReplicaLost) for one in lost] == [False, True, False]
        with pytest.raises(Refused, match="replica_lost_by_input") as refused:
            queue.enqueue(TENANT, poison)
        assert refused.value.status == 422
        await queue.enqueue(TENANT, carrying(b"good"))

    asyncio.run(run())


def test_a_suspect_input_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_queue, "SUSPECT_S", 0.0)

    async def run() -> None:
        queue = VersionQueue("model-a-b-c-v1.0.0", PoisonedReplica(b"poison"), batch_max=8, batches_max=2, timeout_s=1.0)
        for _ in range(3):
            with pytest.raises(ReplicaLost):
                await queue.enqueue(TENANT, carrying(b"poison"), isolated=True)

    asyncio.run(run())
