"""Calls of one batch get each its own prediction, whatever happens to the others (K16)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, save

from serving.inference import Inference, OutputTensor, Predicted, PredictionFailed
from serving.model_interface import Interface, Tensor
from serving.replicas.batch_codec import pack, pack_reply, unpack, unpack_reply
from serving.runtimes.onnx import OnnxRuntime
from serving.runtimes.runtime import LoadFailed, split_by_weight

INTERFACE = Interface((Tensor("i", "INT64", (-1, -1)),), (Tensor("y", "FP32", (-1, -1)),))


@pytest.fixture(scope="module")
def gather(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    """Looks numbers up in a table of five: an index beyond it fails, and with it the whole run."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [5], [10.0, 11.0, 12.0, 13.0, 14.0])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
        [table],
    )
    file = tmp_path_factory.mktemp("model") / "gather.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    runtime = OnnxRuntime(file.read_bytes(), INTERFACE)
    runtime.warm_up()
    return runtime


def call(*rows: list[int]) -> Inference:
    array = np.array(rows, "<i8")
    return Inference("", len(rows), (array.shape[1:],), (array.tobytes(),), ((0, False),))


def answers(runtime: OnnxRuntime, calls: list[Inference]) -> list[list[list[float]] | str]:
    blob, order = pack(calls)
    reply = unpack_reply(pack_reply("r", runtime.predict(unpack(blob))))
    found: list[list[list[float]] | str] = [""] * len(calls)
    for index, result in zip(order, reply.predictions, strict=True):
        match result:
            case Predicted(outputs):
                found[index] = np.frombuffer(outputs[0].data, "<f4").reshape(outputs[0].shape).tolist()
            case PredictionFailed(message):
                found[index] = message
    return found


def test_calls_of_different_shapes_and_sizes_each_get_their_own_rows(gather: OnnxRuntime) -> None:
    got = answers(gather, [call([0]), call([1, 2], [3, 4]), call([4]), call([2, 2])])
    assert got == [[[10.0]], [[11.0, 12.0], [13.0, 14.0]], [[14.0]], [[12.0, 12.0]]]


def test_a_call_that_fails_fails_no_other_call_of_its_batch(gather: OnnxRuntime) -> None:
    got = answers(gather, [call([0]), call([99]), call([4])])
    assert got[0] == [[10.0]] and got[2] == [[14.0]]
    assert isinstance(got[1], str) and "indices" in got[1]


@pytest.mark.parametrize("mixes", ["sum", "softmax"])
def test_a_model_that_mixes_rows_never_sees_two_callers_at_once(mixes: str) -> None:
    """A running sum along the free dimension would tell one caller what another sent."""
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [0])
    node = helper.make_node("CumSum", ["x", "axis"], ["y"]) if mixes == "sum" else helper.make_node("Softmax", ["x"], ["y"], axis=0)
    columns = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 1]) for n in ("x", "y")]
    graph = helper.make_graph([node], "g", columns[:1], columns[1:], [axis] if mixes == "sum" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    face = Interface((Tensor("x", "FP32", (-1, 1)),), (Tensor("y", "FP32", (-1, 1)),))
    runtime = OnnxRuntime(model.SerializeToString(), face)
    runtime.warm_up()

    def asked(*values: float) -> Inference:
        return Inference("", len(values), ((1,),), (np.array(values, "<f4").tobytes(),), ((0, False),))

    calls = [asked(1000, 2000), asked(1, 2)]
    assert answers(runtime, calls) == [answers(runtime, [c])[0] for c in calls]


def test_a_model_without_a_free_first_dimension_runs_each_call_alone(gather: OnnxRuntime) -> None:
    alone = [Inference("", 0, ((1, 1),), (np.array([[n]], "<i8").tobytes(),), ((0, False),)) for n in (1, 2)]
    blob, _ = pack(alone)
    assert [r.rows for r in unpack(blob)] == [(0,), (0,)]
    assert answers(gather, alone) == [[[11.0]], [[12.0]]]


@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3), min_size=1, max_size=12))
def test_a_batch_answers_as_its_calls_would_alone(gather: OnnxRuntime, items: list[list[int]]) -> None:
    calls = [call(item) for item in items]
    together, apart = answers(gather, calls), [answers(gather, [c])[0] for c in calls]
    assert [isinstance(t, str) for t in together] == [isinstance(a, str) for a in apart]
    assert [t for t in together if not isinstance(t, str)] == [a for a in apart if not isinstance(a, str)]


@given(st.integers(0, 10**6), st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_shares_add_up_to_the_whole(total: int, weights: list[int]) -> None:
    parts = split_by_weight(total, weights)
    assert sum(parts) == total and len(parts) == len(weights)


def test_a_reply_keeps_outputs_and_cpu_time_apart() -> None:
    reply = unpack_reply(
        pack_reply("replica-1", [Predicted((OutputTensor((1, 1), b"abcd"), OutputTensor((2,), b"ef")), 7), PredictionFailed("no", 3)])
    )
    assert reply.replica == "replica-1"
    first = reply.predictions[0]
    assert isinstance(first, Predicted) and [bytes(o.data) for o in first.outputs] == [b"abcd", b"ef"] and first.cpu_us == 7
    assert reply.predictions[1] == PredictionFailed("no", 3)


def test_a_file_that_is_no_model_or_has_another_interface_does_not_load(gather: OnnxRuntime, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="not_loadable"):
        OnnxRuntime(b"not a model", INTERFACE)
