"""One call's answer is bounded before it is copied, and so is the reply of a batch; neither touches another call (K16, K28)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from serving.gateway.execution import Execution, Outcome
from serving.gateway.version_queue import CallResult, VersionQueue
from serving.inference import DTYPES, Inference, OutputTensor, Predicted, Prediction, PredictionFailed
from serving.model_interface import Interface, Tensor
from serving.protocols.open_inference.tensors import render
from serving.replicas.batch_codec import pack, pack_reply, unpack, unpack_reply
from serving.runtimes.answer_size import LARGE_ANSWERS_PER_REPLY, ReplyRoom, numbers_size, texts_size
from serving.runtimes.onnx import OnnxRuntime

BOUND = 10_000
BINARY, JSON = True, False
ONES = Interface((Tensor("n", "INT64", (1,)),), (Tensor("y", "FP32", (-1,)), Tensor("n_again", "INT64", (1,))))
WIDE = Interface((Tensor("x", "FP32", (-1, 1)),), (Tensor("y", "FP32", (-1, 1000)),))


def ones(answer_bytes_max: int = BOUND) -> OnnxRuntime:
    """As many ones as the input says: eight bytes in, any number out. And the input again."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["y"], value=one), helper.make_node("Identity", ["n"], ["n_again"])]
    number = [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("n", "n_again")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None]), number[1]]
    return loaded(helper.make_graph(nodes, "g", number[:1], outputs), ONES, answer_bytes_max)


def wide(answer_bytes_max: int = BOUND) -> OnnxRuntime:
    """A thousand copies of each row: calls are stacked, and their answers are large together."""
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1000])],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [1, 1000])],
    )
    return loaded(graph, WIDE, answer_bytes_max)


def loaded(graph: Any, interface: Interface, answer_bytes_max: int) -> OnnxRuntime:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runtime = OnnxRuntime(model.SerializeToString(), interface, answer_bytes_max=answer_bytes_max)
    runtime.warm_up()
    return runtime


def many(count: int, *wanted: tuple[int, bool]) -> Inference:
    return Inference("", 0, ((1,),), (np.array([count], "<i8").tobytes(),), wanted or ((0, BINARY),))


def row(value: float) -> Inference:
    return Inference("", 1, ((1,),), (np.array([value], "<f4").tobytes(),), ((0, BINARY),))


def replied(runtime: OnnxRuntime, *calls: Inference) -> tuple[list[Prediction], int]:
    """What became of each call, and the bytes of the reply."""
    blob, order = pack(calls)
    reply = pack_reply("r", runtime.predict(unpack(blob)))
    of_call = dict(zip(order, unpack_reply(reply).predictions, strict=True))
    return [of_call[i] for i in range(len(calls))], len(reply)


def sizes(predictions: list[Prediction]) -> list[int | None]:
    """Bytes of each answer; None for a call that failed."""
    return [sum(len(o.data) for o in p.outputs) if isinstance(p, Predicted) else None for p in predictions]


def test_a_call_whose_answer_is_too_large_fails_alone_and_says_what_to_do() -> None:
    predictions, size = replied(ones(), many(2), many(50_000_000), many(3))
    assert sizes(predictions) == [8, None, 12] and size < 1000
    failed = predictions[1]
    assert isinstance(failed, PredictionFailed) and not failed.reply_full and failed.cpu_us > 0
    assert "200000000 bytes" in failed.message and f"{BOUND} (answer_bytes_max)" in failed.message
    assert "ask for fewer outputs, send fewer rows, or ask for binary tensors" in failed.message


def test_the_largest_answer_is_given_and_one_byte_more_is_not() -> None:
    assert sizes(replied(ones(), many(BOUND // 4), many(BOUND // 4 + 1))[0]) == [BOUND, None]


def test_only_outputs_that_were_asked_for_count_and_are_sent() -> None:
    predictions, size = replied(ones(), many(50_000_000, (1, BINARY)), many(2, (1, BINARY), (0, BINARY)))
    assert sizes(predictions) == [8, 16] and size < 1000
    second = predictions[1]
    assert isinstance(second, Predicted) and [o.shape for o in second.outputs] == [(1,), (2,)]


def test_an_output_that_is_too_large_in_json_may_be_asked_for_as_binary() -> None:
    assert sizes(replied(ones(), many(1000, (0, JSON)), many(1000, (0, BINARY)))[0]) == [None, 4000]


def test_calls_that_ran_together_are_bounded_each_by_itself() -> None:
    two_rows = Inference("", 2, ((1,),), (np.ones(2, "<f4").tobytes(),), ((0, BINARY),))
    assert sizes(replied(wide(7999), row(1), two_rows, row(2))[0]) == [4000, None, 4000]


def test_calls_that_run_together_may_ask_for_different_things() -> None:
    in_json = Inference("", 1, ((1,),), (np.ones(1, "<f4").tobytes(),), ((0, JSON),))
    nothing = Inference("", 1, ((1,),), (np.ones(1, "<f4").tobytes(),), ())
    assert sizes(replied(wide(7999), row(1), in_json, row(2), nothing)[0]) == [4000, None, 4000, 0]
    assert [len(run.rows) for run in unpack(pack([row(1), in_json, row(2)])[0])] == [3]


@pytest.mark.parametrize("runs", ["together", "alone"])
def test_a_reply_has_a_bound_and_a_call_without_room_in_it_has_not_failed(runs: str) -> None:
    runtime, calls = (wide(4000), [row(n) for n in range(40)]) if runs == "together" else (ones(4000), [many(1000) for _ in range(40)])
    predictions, size = replied(runtime, *calls)
    assert size < 4000 * LARGE_ANSWERS_PER_REPLY + 5000
    assert sizes(predictions) == [4000] * LARGE_ANSWERS_PER_REPLY + [None] * (40 - LARGE_ANSWERS_PER_REPLY)
    assert all(p.reply_full for p in predictions if isinstance(p, PredictionFailed))


def test_large_answers_take_no_room_from_small_ones() -> None:
    predictions, _ = replied(ones(), *[many(2500) for _ in range(9)], many(2))
    assert sizes(predictions)[-1] == 8 and sizes(predictions).count(10_000) == LARGE_ANSWERS_PER_REPLY


@given(st.integers(1, 10_000), st.lists(st.integers(0, 10_000), min_size=1, max_size=100))
def test_a_reply_takes_the_first_large_answer_all_small_ones_and_no_more_than_twice_its_room(bound: int, asked: list[int]) -> None:
    asked = [min(size, bound) for size in asked]
    room, whole = ReplyRoom(len(asked), bound), LARGE_ANSWERS_PER_REPLY * bound
    taken = [room.take(size) for size in asked]
    assert taken[0]
    assert all(took for took, size in zip(taken, asked, strict=True) if size <= whole // len(asked))
    assert sum(size for took, size in zip(taken, asked, strict=True) if took) <= 2 * whole


def rendered(output: OutputTensor, datatype: str) -> int:
    interface = Interface((), (Tensor("y", datatype, (-1,)),))
    return len(render("m", "1", Inference("", 0, (), (), ((0, JSON),)), (output,), interface)[0])


@pytest.mark.parametrize("datatype", sorted(DTYPES))
@given(st.data())
def test_no_number_takes_more_than_it_is_counted_as(datatype: str, data: st.DataObject) -> None:
    dtype = DTYPES[datatype]
    values = np.frombuffer(data.draw(st.binary(min_size=64 * dtype.itemsize, max_size=64 * dtype.itemsize)), dtype)
    values = values.view("u1").__ne__(0).view("?") if datatype == "BOOL" else values
    empty = rendered(OutputTensor((0,), b""), datatype)
    assert rendered(OutputTensor((64,), values.tobytes()), datatype) - empty <= numbers_size(values.nbytes, datatype, as_binary=False)


@pytest.mark.parametrize(
    ("datatype", "longest"), [("FP64", -1.2345678901234567e-05), ("FP64", -2.2250738585072014e-308), ("FP32", -1.2345679e-05)]
)
def test_the_longest_floats_are_counted_in_full(datatype: str, longest: float) -> None:
    values = np.full(64, longest, DTYPES[datatype])
    empty = rendered(OutputTensor((0,), b""), datatype)
    assert rendered(OutputTensor((64,), values.tobytes()), datatype) - empty <= numbers_size(values.nbytes, datatype, as_binary=False)


@given(st.lists(st.text(max_size=20), max_size=20))
def test_no_text_takes_more_than_it_is_counted_as(texts: list[str]) -> None:
    encoded = [t.encode(errors="replace") for t in texts]
    data = b"".join(len(e).to_bytes(4, "little") + e for e in encoded)
    assert rendered(OutputTensor((len(texts),), data), "BYTES") - rendered(OutputTensor((0,), b""), "BYTES") <= texts_size(encoded, JSON)
    assert texts_size(encoded, BINARY) == len(data)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_memory_of_a_large_answer_is_given_back_with_the_next_call() -> None:
    runtime, large = ones(), 400 << 20
    before = resident_bytes()
    replied(runtime, many(large // 4))
    replied(runtime, many(1))
    assert resident_bytes() - before < large / 2
    runtime.close()


class FullReplies:
    """Replicas whose reply has room for one answer; counts the calls that each batch had."""

    def __init__(self) -> None:
        self.batches = list[int]()

    async def call(self, address: str, blob: bytes) -> bytes:
        await asyncio.sleep(0)
        count = sum(len(run.rows) for run in unpack(blob))
        self.batches.append(count)
        return pack_reply("r", [Predicted((), 1), *(PredictionFailed("", 1, reply_full=True) for _ in range(count - 1))])


def test_calls_without_room_in_a_reply_are_sent_again_until_each_has_its_answer() -> None:
    """Each run is an execution with its fact, which nobody is billed for."""
    facts = list[Outcome]()

    class Run(Execution):
        def __init__(self, queue: VersionQueue) -> None:
            """Only what `run` needs."""
            version = type("V", (), {"spec": type("S", (), {"timeout_us": 10_000_000})})
            self._state, self._version = cast("Any", type("State", (), {"queue": lambda _self, _version: queue})()), cast("Any", version)
            self._caller = cast("Any", type("Caller", (), {"tenant": "acme"}))
            self._inference, self._attempt = many(1), 1

        def record(self, ended: Outcome) -> Any:
            facts.append(ended)

    async def run() -> tuple[list[CallResult], list[int]]:
        replicas = FullReplies()
        queue = VersionQueue("model-a-b-c-v1.0.0", replicas, batch_max=8, batches_max=1, timeout_s=5.0)
        return list(await asyncio.gather(*(Run(queue).run() for _ in range(4)))), replicas.batches

    results, batches = asyncio.run(run())
    assert [type(r.prediction) for r in results] == [Predicted] * 4
    assert batches == [4, 3, 2, 1]
    assert [(fact.outcome, fact.error_code, fact.result is not None) for fact in facts] == [("failed", "reply_full", True)] * 6
