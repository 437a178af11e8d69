"""Large bodies are parsed in another process: the loop goes on, the tenants take turns, and a body costs nobody else anything (K28)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from access.principal import FIRST_ADMIN
from events.facts.deployments import ServiceSpec
from events.facts.fact import TenantId
from infra.launcher import processes
from serving.gateway.asgi import EXECUTED
from serving.gateway.bodies import large_bodies
from serving.gateway.bodies.body_process import inference_of
from serving.gateway.bodies.large_bodies import BodyProcess, LargeBodies, parsed_here, rendered_here
from serving.gateway.pipeline import Pipeline
from serving.gateway.request import Request
from serving.gateway.served_models import Version
from serving.http import Answer
from serving.inference import Inference, OutputTensor
from serving.model_interface import Interface, Tensor
from serving.protocols.open_inference.operations import FORMAT
from serving.protocols.operations import Infer, InferenceFormat
from serving.refused import Refused
from tests.support.lifecycle_facts import MODEL
from tests.support.polling import eventually
from tests.unit.serving.gateway.body_formats import OBEYS, OBEYS_AT_THE_ANSWER
from tests.unit.serving.gateway.open_gateway import Facts, OpenState

ROOT = Path(__file__).resolve().parents[4]
BODY_BYTES_MAX = 4 << 20
X, WORDS = Tensor("x", "FP32", (-1, 2)), Tensor("s", "BYTES", (-1,))
OUTPUTS = (Tensor("y", "FP32", (-1,)), Tensor("label", "BYTES", (-1,)))
ONE, MANY = Interface((X,), OUTPUTS), Interface((X, WORDS), OUTPUTS)


def version_of(interface: Interface = ONE, wait_s: float = 60.0) -> Version:
    spec = ServiceSpec(timeout_us=int(wait_s * 1e6))
    return Version("model-a-b-c", "1.0.0", "model-a-b-c-v1.0.0", "acme", interface, "", "onnx", spec)


def request_of(body: bytes, headers: dict[bytes, bytes] | None = None, tenant: str = "a", gone: bool = False) -> Request:
    """Of a caller of this tenant, who has disconnected or stays."""

    async def receive() -> dict[str, Any]:
        if not gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request("POST", "/", headers or {}, receive, 0, caller=replace(FIRST_ADMIN, tenant=TenantId(tenant)), body=body)


def with_bodies(scenario: Callable[[LargeBodies], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        bodies = LargeBodies(BODY_BYTES_MAX)
        try:
            await asyncio.wait_for(scenario(bodies), 120)
        finally:
            await bodies.close()

    asyncio.run(run())


def obey(bodies: LargeBodies, order: bytes, tenant: str = "a", wait_s: float = 60.0, gone: bool = False) -> Awaitable[Inference]:
    return asyncio.create_task(bodies.parse(OBEYS, request_of(order, tenant=tenant, gone=gone), version_of(wait_s=wait_s)))


async def refusal(call: Awaitable[object]) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        await call
    assert refused.value.message and refused.value.remedy
    return refused.value.status, refused.value.code


def running(bodies: LargeBodies) -> BodyProcess:
    process = bodies._process  # pyright: ignore[reportPrivateUsage]
    assert process is not None
    return process


async def working(bodies: LargeBodies) -> BodyProcess:
    """Once the process has begun and has its first item."""
    while bodies._process is None:  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    return running(bodies)


# --- what is parsed where


def as_json(*tensors: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **members}).encode()


def tensor(name: str, shape: list[int], data: Any, datatype: str = "FP32", **members: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **members}


def packed(raw: bytes, name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (1, 2)) -> tuple[dict[bytes, bytes], bytes]:
    entry = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    head = as_json(entry)
    return {b"inference-header-content-length": str(len(head)).encode()}, head + raw


PLAIN: dict[bytes, bytes] = {}
NESTED = [[0.5, 1.5]] * 9
BODIES: list[tuple[dict[bytes, bytes], bytes, Interface]] = [
    (PLAIN, as_json(tensor("x", [9, 2], NESTED)), ONE),
    (PLAIN, as_json(tensor("x", [1, 2], [1, 2]), id="über", outputs=[{"name": "label", "parameters": {"binary_data": True}}]), ONE),
    (PLAIN, as_json(tensor("x", [2, 2], [1, 2, 3, 4]), tensor("s", [2], ["ä", ""], "BYTES")), MANY),
    (PLAIN, as_json(tensor("x", [2, 2], [1, 2, 3, 4]), tensor("s", [1], ["a"], "BYTES")), MANY),
    (*packed(np.array([1, 2], "<f4").tobytes()), ONE),
    (*packed(b"\1\0\0\0a\0\0\0\0", "s", "BYTES", (2,)), Interface((WORDS,), OUTPUTS)),
    (*packed(b"\1\0\0\0a\0\0\0", "s", "BYTES", (2,)), Interface((WORDS,), OUTPUTS)),
    (*packed(np.array([1, np.nan], "<f4").tobytes()), ONE),
    ({b"inference-header-content-length": b"x"}, b"{}", ONE),
    ({b"inference-header-content-length": b"99"}, b"{}", ONE),
    (PLAIN, as_json(tensor("x", [1, 2], [1e39, 0])), ONE),
    (PLAIN, as_json(tensor("x", [1, 2], [1, 2], unknown=1)), ONE),
    (PLAIN, as_json(tensor("z\n\u2028", [1, 2], [1, 2])), ONE),
    (PLAIN, as_json(tensor("x", [1, 3], [1, 2, 3])), ONE),
    (PLAIN, as_json(tensor("x", [1, 2], [1, "2"])), ONE),
    (PLAIN, b"[" * 100_000, ONE),
    (PLAIN, b"", ONE),
]


async def outcome(call: Awaitable[Inference]) -> object:
    """The call, or all that its refusal says."""
    try:
        return await call
    except Refused as e:
        return e.status, e.code, e.message, e.field, e.remedy, e.headers, e.more


async def parsed(headers: dict[bytes, bytes], body: bytes, interface: Interface) -> Inference:
    return FORMAT.parse(headers, body, interface)


def test_a_body_is_the_same_call_or_the_same_refusal_wherever_it_is_parsed() -> None:
    async def scenario(bodies: LargeBodies) -> None:
        accepted = 0
        for headers, body, interface in BODIES:
            request, version = request_of(body, headers), version_of(interface)
            here, there = await outcome(bodies.parse(FORMAT, request, version)), await outcome(parsed(headers, body, interface))
            assert here == there
            accepted += isinstance(here, Inference)
        assert 5 < accepted < len(BODIES) - 5
        odd = 409, "odd", "message", "field", "remedy", ((b"retry-after", b"7"),), {"successor": "other"}
        assert await outcome(obey(bodies, b"nothing known")) == odd

    with_bodies(scenario)


@pytest.mark.parametrize("as_binary", [False, True])
def test_an_answer_is_the_same_wherever_it_is_written(as_binary: bool) -> None:
    outputs = (OutputTensor((2,), np.array([0.1, 2], "<f4").tobytes()), OutputTensor((2,), memoryview(b"\2\0\0\0\xc3\xa4\0\0\0\0")))
    inference = Inference("call", 2, ((2,),), (b"large",), ((0, as_binary), (1, False)))

    async def scenario(bodies: LargeBodies) -> None:
        here = FORMAT.render(version_of(), inference, outputs)
        assert await bodies.render(FORMAT, request_of(b""), version_of(), (inference, outputs)) == here

    with_bodies(scenario)


def test_small_bodies_and_numbers_in_binary_are_parsed_here_and_other_large_ones_elsewhere() -> None:
    def here(headers: dict[bytes, bytes], body: bytes, interface: Interface) -> bool:
        return parsed_here(FORMAT, request_of(body, headers), interface)

    small = as_json(tensor("x", [9, 2], NESTED))
    large = as_json(tensor("x", [9999, 2], [[0.5, 1.5]] * 9999))
    assert len(large) > large_bodies.HERE_BYTES_MAX
    assert here(PLAIN, small, ONE) and not here(PLAIN, large, ONE)
    numbers = packed(bytes(1 << 20), shape=(1 << 17, 2))
    assert here(*numbers, ONE) and not here(*numbers, MANY)  # a version with an input of texts, whichever input it is
    assert not here(*packed(bytes(large_bodies.NUMBERS_HERE_BYTES_MAX), shape=(1 << 19, 2)), ONE)
    assert not here({b"inference-header-content-length": str(len(large)).encode()}, large, ONE)
    with pytest.raises(Refused, match="invalid_header"):
        here({b"inference-header-content-length": b"x"}, large, ONE)


def test_binary_outputs_are_copied_here_and_large_texts_are_written_elsewhere() -> None:
    large, small = OutputTensor((), bytes(large_bodies.HERE_BYTES_MAX + 1)), OutputTensor((), b"1234")

    def here(*asked_for: tuple[OutputTensor, bool]) -> bool:
        wanted = tuple((index, as_binary) for index, (_, as_binary) in enumerate(asked_for))
        return rendered_here(Inference("", 1, (), (), wanted), [output for output, _ in asked_for])

    assert here((large, True), (small, False)) and here((small, False))
    assert not here((large, False)) and not here((small, True), (large, False))


def test_the_loop_goes_on_while_a_large_body_is_parsed() -> None:
    """Measured in CPU time of the loop's thread: what else runs on the machine does not count."""
    n = BODY_BYTES_MAX // 8
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d,2],"data":[%b]}]}' % (n, b",".join([b"[1,2]"] * n))
    began = time.thread_time()
    expected = FORMAT.parse({}, body, ONE)
    alone_s = time.thread_time() - began
    turns: list[float] = []

    async def scenario(bodies: LargeBodies) -> None:
        call = asyncio.create_task(bodies.parse(FORMAT, request_of(body), version_of()))
        while not call.done():
            turns.append(time.thread_time())
            await asyncio.sleep(0.001)
        turns.append(time.thread_time())
        assert await call == expected

    with_bodies(scenario)
    held_s = max(later - earlier for earlier, later in pairwise(turns))
    assert held_s < alone_s / 10, (held_s, alone_s)


# --- tenants in turn, and bounds


def test_a_tenant_with_one_call_does_not_wait_for_the_many_of_another() -> None:
    ended: list[str] = []

    async def scenario(bodies: LargeBodies) -> None:
        async def call(tenant: str) -> None:
            await obey(bodies, b"sleep 0", tenant)
            ended.append(tenant)

        await asyncio.gather(*(call("greedy") for _ in range(20)), call("modest"))  # all wait before the process has started
        assert len(ended) == 21 and ended.index("modest") == 1

    with_bodies(scenario)


def test_past_its_bound_a_tenant_is_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_bodies, "ITEMS_MAX", 6)
    monkeypatch.setattr(large_bodies, "ITEMS_BYTES_MAX", 300)

    async def scenario(bodies: LargeBodies) -> None:
        first = obey(bodies, b"sleep 600")
        await working(bodies)
        waiting = [obey(bodies, b"sleep 0") for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await obey(bodies, b"sleep 0")
        assert (refused.value.status, refused.value.code) == (429, "too_many_large_bodies")
        assert refused.value.headers == ((b"retry-after", b"1"),) and refused.value.remedy
        waiting.append(obey(bodies, b"sleep 0" + b" " * 90, "other"))
        await asyncio.sleep(0)
        assert await refusal(obey(bodies, b"sleep 0" + b" " * 90, "other")) == (429, "too_many_large_bodies")  # its bytes
        waiting.append(obey(bodies, b"sleep 0" + b" " * 90, "third"))
        await asyncio.sleep(0)
        assert await refusal(obey(bodies, b"sleep 0" + b" " * 90, "fourth")) == (429, "too_many_large_bodies")  # more than is free
        running(bodies)._popen.kill()  # pyright: ignore[reportPrivateUsage]
        assert await refusal(first) == (503, "parser_lost")
        await asyncio.gather(*waiting)
        await obey(bodies, b"sleep 0" + b" " * 90, "fourth")  # there is room again

    with_bodies(scenario)


def test_who_left_makes_room_and_is_not_parsed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_bodies, "ITEMS_MAX", 2)

    async def scenario(bodies: LargeBodies) -> None:
        first = obey(bodies, b"sleep 0.3")
        await working(bodies)
        gone = obey(bodies, b"sleep 600", gone=True)
        await asyncio.sleep(0)
        stays = obey(bodies, b"sleep 0")
        await asyncio.gather(first, stays)
        assert await refusal(gone) == (499, "disconnected")
        assert await refusal(obey(bodies, b"sleep 600", gone=True)) == (499, "disconnected")  # at its turn

    with_bodies(scenario)


def test_a_call_that_is_cancelled_or_waits_too_long_waits_no_more() -> None:
    async def scenario(bodies: LargeBodies) -> None:
        first = obey(bodies, b"sleep 600")
        process = await working(bodies)
        assert await refusal(obey(bodies, b"sleep 0", wait_s=0.05)) == (503, "large_bodies_wait")
        cancelled = asyncio.ensure_future(obey(bodies, b"sleep 600"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert len(bodies._waiting) == 0  # pyright: ignore[reportPrivateUsage]
        os.kill(process.pid, signal.SIGKILL)
        assert await refusal(first) == (503, "parser_lost")

    with_bodies(scenario)


# --- the process


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (b"end", (503, "parser_lost")),
        (b"sleep 600", (503, "parser_lost")),
        (b"spin", (422, "body_too_complex")),
        (b"memory", (422, "body_too_complex")),
    ],
)
def test_what_a_body_does_to_its_process_costs_that_call_alone(
    order: bytes, answer: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_bodies, "CPU_S_MAX", 0.3)

    async def scenario(bodies: LargeBodies) -> None:
        await obey(bodies, b"sleep 0")
        first = running(bodies).pid
        monkeypatch.setattr(large_bodies, "ITEM_S_MAX", 0.2 if order.startswith(b"sleep") else 100.0)
        bad, good = obey(bodies, order), obey(bodies, b"sleep 0.0", "b")
        assert await refusal(bad) == answer
        monkeypatch.setattr(large_bodies, "ITEM_S_MAX", 100.0)
        assert (await good).id == "sleep 0.0"
        assert processes.alive(first) == (order == b"memory") == (running(bodies).pid == first)

    with_bodies(scenario)


def test_an_answer_that_cannot_be_written_is_refused_as_such() -> None:
    async def scenario(bodies: LargeBodies) -> None:
        for order, status in (("end", 503), ("memory", 422)):
            call = Inference(order, 0, (), (), ())
            assert await refusal(bodies.render(OBEYS, request_of(b""), version_of(), (call, ()))) == (status, "answer_not_written")
        gone = bodies.render(OBEYS, request_of(b"", gone=True), version_of(), (Inference("sleep 0", 0, (), (), ()), ()))
        assert await refusal(gone) == (499, "caller_disconnected")

    with_bodies(scenario)


def test_a_mistake_of_ours_is_no_refusal() -> None:
    async def scenario(bodies: LargeBodies) -> None:
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            await obey(bodies, b"mistake")

    with_bodies(scenario)


def test_a_process_that_was_killed_between_two_calls_costs_none() -> None:
    async def scenario(bodies: LargeBodies) -> None:
        await obey(bodies, b"sleep 0")
        process = running(bodies)
        os.kill(process.pid, signal.SIGKILL)
        while process.alive:
            await asyncio.sleep(0.01)
        await obey(bodies, b"sleep 0")

    with_bodies(scenario)


def test_what_comes_back_is_read_as_plain_values_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[tuple[Any, bytes]] = [
        *(([], b""), ({}, b""), ({"inference": 1}, b""), ({"refused": [1]}, b""), ({"inference": ["", 0, [], [], [5]]}, b"1234")),
        *(({"inference": ["", 0, [], [], [3]]}, b"1234"), ({"inference": ["", 0, [], [], [-1, 5]]}, b"1234")),
    ]
    for head, payload in frames:
        with pytest.raises((TypeError, KeyError, ValueError)):
            inference_of(head, payload)

    async def exchange(*_: object) -> tuple[Any, bytes]:
        return frames[0]

    async def scenario(bodies: LargeBodies) -> None:
        with monkeypatch.context() as changed:
            changed.setattr(BodyProcess, "exchange", exchange)
            assert await refusal(obey(bodies, b"sleep 0")) == (503, "parser_lost")
        await obey(bodies, b"sleep 0")

    with_bodies(scenario)


def test_it_has_no_variable_of_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMARKET_ADMIN_KEY", "secret")

    async def scenario(bodies: LargeBodies) -> None:
        assert bytes((await obey(bodies, b"variables")).tensors[0]) == b"OPENBLAS_NUM_THREADS=1\0"

    with_bodies(scenario)


def test_there_is_none_before_the_first_large_body_nor_long_after_the_last_nor_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_bodies, "IDLE_S_MAX", 0.05)

    async def scenario(bodies: LargeBodies) -> None:
        assert bodies._process is None  # pyright: ignore[reportPrivateUsage]
        await obey(bodies, b"sleep 0")
        idle = running(bodies).pid
        while processes.alive(idle):
            await asyncio.sleep(0.01)
        calls = [obey(bodies, b"sleep 600") for _ in range(2)]
        busy = (await working(bodies)).pid
        await bodies.close()
        assert not processes.alive(busy)
        assert [await refusal(call) for call in [*calls, obey(bodies, b"sleep 0")]] == [(503, "stopping")] * 3

    with_bodies(scenario)


GATEWAY = """
import asyncio
from serving.gateway.bodies.large_bodies import BodyProcess

async def main():
    print((await BodyProcess.start(1 << 30)).pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_it_ends_when_its_gateway_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", GATEWAY], cwd=ROOT, stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        assert processes.alive(pid)
        gateway.kill()
        eventually(lambda: not processes.alive(pid), "the process of a gateway that was killed ends")


# --- in the pipeline


async def answered(pipeline: Pipeline, body: bytes, body_format: InferenceFormat = FORMAT, leaves: bool = False) -> Answer:
    """`leaves`: the caller disconnects as soon as it has sent its body."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        if not messages and not leaves:
            await asyncio.Event().wait()
        return messages.pop() if messages else {"type": "http.disconnect"}

    headers = {b"authorization": b"Bearer mm_secret", b"content-length": str(len(body)).encode()}
    return await pipeline.answer(Request("POST", "/", headers, receive, 0), Infer(MODEL, None, body_format))


def with_pipeline(scenario: Callable[[Pipeline, LargeBodies, Facts], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        state = OpenState()
        pipeline = Pipeline(state)
        try:
            await asyncio.wait_for(scenario(pipeline, pipeline._large_bodies, state.facts), 120)  # pyright: ignore[reportPrivateUsage]
        finally:
            await pipeline.close()

    asyncio.run(run())


def rows_of(count: int, call_id: str = "") -> bytes:
    return as_json(tensor("x", [count, 2], [[0.5, 1.5]] * count), id=call_id)


LARGE = 9000


def test_a_large_call_is_parsed_and_its_answer_written_elsewhere_and_it_is_metered_as_any_other() -> None:
    async def scenario(pipeline: Pipeline, bodies: LargeBodies, facts: Facts) -> None:
        small = await answered(pipeline, rows_of(1))
        assert bodies._process is None  # pyright: ignore[reportPrivateUsage]
        large = await answered(pipeline, rows_of(LARGE))
        assert running(bodies).alive
        assert json.loads(small.body)["outputs"][0]["data"] == [0.5, 1.5]
        assert json.loads(large.body)["outputs"][0]["data"] == [0.5, 1.5] * LARGE
        assert facts.settled == [("succeeded", 200, "", len(answer.body)) for answer in (small, large)]

    with_pipeline(scenario)


def test_a_call_whose_answer_could_not_be_written_was_executed_and_is_one_failed_fact() -> None:
    async def scenario(pipeline: Pipeline, bodies: LargeBodies, facts: Facts) -> None:
        assert await refusal(answered(pipeline, rows_of(LARGE, "end"), OBEYS_AT_THE_ANSWER)) == (503, "answer_not_written")
        assert await refusal(answered(pipeline, rows_of(1), leaves=True)) == (499, "caller_disconnected")
        assert await refusal(answered(pipeline, rows_of(LARGE), leaves=True)) == (499, "disconnected")  # before it was executed
        assert facts.settled == [("failed", 503, "answer_not_written", 0), ("aborted", 499, "caller_disconnected", 0)]
        assert {"answer_not_written", "caller_disconnected"} <= EXECUTED and "disconnected" not in EXECUTED

    with_pipeline(scenario)


@pytest.mark.parametrize("rows", [1, LARGE], ids=["here", "elsewhere"])
def test_a_mistake_of_ours_at_the_answer_leaves_no_execution_without_its_fact(rows: int) -> None:
    async def scenario(pipeline: Pipeline, bodies: LargeBodies, facts: Facts) -> None:
        with pytest.raises((KeyError, RuntimeError), match="a mistake of ours"):
            await answered(pipeline, rows_of(rows, "mistake"), OBEYS_AT_THE_ANSWER)
        assert facts.settled == [("failed", 500, "internal_error", 0)]

    with_pipeline(scenario)
