"""A tenant's calls beyond its share wait unread: another tenant's call is before all of them (K28)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from serving.gateway.pipeline import TURNS, Pipeline
from serving.gateway.request import Request
from serving.protocols.open_inference.operations import FORMAT
from serving.protocols.operations import Infer
from serving.replicas.batch_codec import unpack
from tests.support.lifecycle_facts import MODEL
from tests.unit.serving.gateway.open_gateway import SECRETS, Echo, OpenState

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1.5]}]}).encode()


class Held(Echo):
    """A replica that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.batches: list[int] = []

    async def call(self, address: str, blob: bytes) -> bytes:
        self.batches.append(sum(len(run.rows) for run in unpack(blob)))
        await self.go_on.wait()
        return await super().call(address, blob)


class Callers:
    """Calls of several tenants at one pipeline; notes whose body was read, in order."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.read: list[str] = []

    def call(self, tenant: str, gone: bool = False) -> asyncio.Task[Any]:
        messages: list[dict[str, Any]] = [{"type": "http.disconnect"} if gone else {"type": "http.request", "body": BODY}]

        async def receive() -> dict[str, Any]:
            if not messages:
                await asyncio.Event().wait()
            self.read.append(tenant)
            return messages.pop()

        headers = {b"authorization": b"Bearer " + SECRETS[tenant], b"content-length": str(len(BODY)).encode()}
        return asyncio.create_task(self._pipeline.answer(Request("POST", "/", headers, receive, 0), Infer(MODEL, None, FORMAT)))


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def with_callers(scenario: Callable[[Callers, Held], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        replicas = Held()
        pipeline = Pipeline(OpenState(replicas))
        try:
            await asyncio.wait_for(scenario(Callers(pipeline), replicas), 60)
        finally:
            await pipeline.close()

    asyncio.run(run())


def test_a_call_is_read_at_once_whatever_another_tenant_has_waiting() -> None:
    async def scenario(callers: Callers, replicas: Held) -> None:
        loud = [callers.call("acme") for _ in range(300)]
        await settled()
        assert callers.read == ["acme"] * TURNS.alone_max
        quiet = callers.call("globex")
        await settled()
        assert callers.read == [*["acme"] * TURNS.alone_max, "globex"]
        replicas.go_on.set()
        assert (await quiet).status == 200
        assert {answer.status for answer in await asyncio.gather(*loud)} == {200}

    with_callers(scenario)


def test_beside_others_a_tenants_batches_are_small() -> None:
    async def scenario(callers: Callers, replicas: Held) -> None:
        quiet = callers.call("globex")
        loud = [callers.call("acme") for _ in range(300)]
        await settled()
        assert callers.read.count("acme") == TURNS.shared_max
        replicas.go_on.set()
        await asyncio.gather(quiet, *loud)
        assert max(replicas.batches) <= TURNS.shared_max + 1

    with_callers(scenario)


def test_a_caller_who_left_while_its_call_waited_has_nothing_executed() -> None:
    async def scenario(callers: Callers, replicas: Held) -> None:
        loud = [callers.call("acme") for _ in range(TURNS.alone_max)]
        left = callers.call("acme", gone=True)
        await settled()
        replicas.go_on.set()
        await asyncio.gather(*loud)
        assert (await asyncio.gather(left, return_exceptions=True))[0].code == "disconnected"  # type: ignore[union-attr]
        assert sum(replicas.batches) == TURNS.alone_max

    with_callers(scenario)
