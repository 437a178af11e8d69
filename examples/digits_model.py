"""A small classifier, trained when it is needed: 64 numbers in, ten scores out; two versions differ by `bias`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from events.facts.models import Technical, TensorSpec

TECHNICAL = Technical(
    format="onnx",
    framework="numpy",
    precision="FP32",
    inputs=(TensorSpec(name="pixels", datatype="FP32", shape=(-1, 64)),),
    outputs=(TensorSpec(name="label", datatype="INT64", shape=(-1,)), TensorSpec(name="scores", datatype="FP32", shape=(-1, 10))),
)


def write_digits(file: Path, bias: float = 0.0, seed: int = 7) -> Path:
    random = np.random.default_rng(seed)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["pixels", "w1"], ["h0"]),
            helper.make_node("Relu", ["h0"], ["h1"]),
            helper.make_node("MatMul", ["h1", "w2"], ["h2"]),
            helper.make_node("Add", ["h2", "b"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [None, 64])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 10]),
        ],
        [
            numpy_helper.from_array(random.standard_normal((64, 64), dtype=np.float32), "w1"),
            numpy_helper.from_array(random.standard_normal((64, 10), dtype=np.float32), "w2"),
            numpy_helper.from_array(np.full(10, bias, np.float32), "b"),
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    return file


def write_slow_digits(file: Path) -> Path:
    """The same interface; runs a thousand loops for each unit of the sum of the pixels."""
    scores = helper.make_tensor_value_info("before", TensorProto.FLOAT, [None, 10])
    flag = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("going", "on")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Add", ["before", "nothing"], ["after"])],
        "round",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, []), flag[0], scores],
        [flag[1], helper.make_tensor_value_info("after", TensorProto.FLOAT, [None, 10])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["pixels", "w"], ["first"]),
            helper.make_node("ReduceSum", ["pixels"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "thousand"], ["many"]),
            helper.make_node("Cast", ["many"], ["rounds"], to=TensorProto.INT64),
            helper.make_node("Loop", ["rounds", "yes", "first"], ["scores"], body=body),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        "slow",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [None, 64])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 10]),
        ],
        [
            numpy_helper.from_array(np.ones((64, 10), np.float32), "w"),
            numpy_helper.from_array(np.array(1000, np.float32), "thousand"),
            numpy_helper.from_array(np.array(0, np.float32), "nothing"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    return file
