"""Open Inference bodies: every mistake of a caller is refused with its field and raises nothing else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.inference import OutputTensor
from serving.model_interface import Interface, Tensor
from serving.protocols.open_inference.tensors import parse, render
from serving.refused import Refused

X = Tensor("x", "FP32", (-1, 2))
ONE = Interface((X,), (Tensor("y", "FP32", (-1, 2)), Tensor("label", "INT64", (-1,))))
MANY = Interface((X, Tensor("n", "INT8", (-1,)), Tensor("s", "BYTES", (-1,))), ONE.outputs)


def request(**change: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]} | change]}


def refused(body: object, interface: Interface = ONE, header_length: int | None = None) -> tuple[str, str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Refused) as e:
        parse(raw, header_length, interface)
    assert e.value.status == 400 and e.value.message and e.value.remedy
    return e.value.code, e.value.field


def binary(raw: bytes, **change: Any) -> tuple[bytes, int]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": len(raw)}} | change
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + raw, len(head)


def test_json_and_binary_give_the_same_call() -> None:
    plain = parse(json.dumps(request()).encode(), None, ONE)
    body, head = binary(np.array([1, 2], "<f4").tobytes())
    packed = parse(body, head, ONE)
    assert bytes(packed.tensors[0]) == bytes(plain.tensors[0])
    assert (packed.rows, packed.signature) == (plain.rows, plain.signature) == (1, ((2,),))


def test_nested_data_is_the_same_as_flat_data() -> None:
    flat = parse(json.dumps(request(shape=[2, 2], data=[1, 2, 3, 4])).encode(), None, ONE)
    nested = parse(json.dumps(request(shape=[2, 2], data=[[1, 2], [3, 4]])).encode(), None, ONE)
    assert flat == nested and flat.rows == 2


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"name": "z"}, "unknown_input", "inputs[0].name"),
        ({"name": ["x"]}, "unknown_input", "inputs[0].name"),
        ({"datatype": "FP64"}, "wrong_datatype", "inputs[0].datatype"),
        ({"datatype": None}, "wrong_datatype", "inputs[0].datatype"),
        ({"shape": [1, 3]}, "wrong_shape", "inputs[0].shape"),
        ({"shape": [2]}, "wrong_shape", "inputs[0].shape"),
        ({"shape": [-1, 2]}, "invalid_shape", "inputs[0].shape"),
        ({"shape": [0, 2]}, "invalid_shape", "inputs[0].shape"),
        ({"shape": [True, 2]}, "invalid_shape", "inputs[0].shape"),
        ({"shape": [1.0, 2]}, "invalid_shape", "inputs[0].shape"),
        ({"shape": [10**15, 2]}, "invalid_shape", "inputs[0].shape"),
        ({"shape": [1] * 40}, "invalid_shape", "inputs[0].shape"),
        ({"shape": "1,2"}, "invalid_shape", "inputs[0].shape"),
        ({"shape": [2**31, 2]}, "wrong_data_length", "inputs[0].data"),
        ({"data": [1.0]}, "wrong_data_length", "inputs[0].data"),
        ({"data": [1.0, 2.0, 3.0]}, "wrong_data_length", "inputs[0].data"),
        ({"data": []}, "wrong_data_length", "inputs[0].data"),
        ({"data": [[1.0], [2.0]]}, "wrong_data_length", "inputs[0].data"),
        ({"data": [[1.0, [2.0]]]}, "wrong_data", "inputs[0].data"),
        ({"data": ["1", "2"]}, "wrong_data", "inputs[0].data"),
        ({"data": [True, False]}, "wrong_data", "inputs[0].data"),
        ({"data": [None, 1]}, "wrong_data", "inputs[0].data"),
        ({"data": {"0": 1}}, "wrong_data", "inputs[0].data"),
        ({"data": 7}, "wrong_data", "inputs[0].data"),
        ({"data": [1e39, 0.0]}, "not_finite", "inputs[0].data"),
        ({"parameters": {"shared_memory_region": "r"}}, "unsupported_parameter", "inputs[0].parameters.shared_memory_region"),
        ({"parameters": 3}, "not_an_object", "inputs[0].parameters"),
        ({"extra": 1}, "unknown_field", "inputs[0].extra"),
        ({"parameters": {"binary_data_size": 8}}, "two_kinds_of_data", "inputs[0]"),
    ],
)
def test_a_wrong_tensor_is_refused_with_its_field(change: dict[str, Any], code: str, field: str) -> None:
    assert refused(request(**change)) == (code, field)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [NaN, 1]}]}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 5000, "invalid_json"),
        (b"[]", "not_an_object"),
        (b"3", "not_an_object"),
        (b"{}", "missing_inputs"),
        (b'{"inputs": []}', "missing_inputs"),
        (b'{"inputs": {"x": 1}}', "missing_inputs"),
        (b'{"inputs": [1]}', "not_an_object"),
        (b'{"inputs": [], "unknown": 1}', "unknown_field"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, code: str) -> None:
    assert refused(body)[0] == code


def test_nested_data_deeper_than_the_shape_is_refused_without_recursion() -> None:
    assert (
        refused(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":' + b"[" * 900 + b"1" + b"]" * 900 + b"}]}")[0]
        == "wrong_data_length"
    )


@pytest.mark.parametrize("depth", [900, 1000, 1020])
def test_a_structure_in_place_of_a_string_is_refused_at_any_depth(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    assert refused(b'{"inputs":[{"name":' + deep + b"}]}") == ("unknown_input", "inputs[0].name")
    assert refused(b'{"inputs":[{"name":"x","datatype":' + deep + b"}]}") == ("wrong_datatype", "inputs[0].datatype")
    assert refused(b'{"outputs":[{"name":' + deep + b'}],"inputs":[1]}') == ("unknown_output", "outputs[0].name")


def test_nested_data_of_an_input_without_dimensions_is_refused() -> None:
    scalar = Interface((Tensor("x", "FP32", ()),), ONE.outputs)
    assert bytes(parse(json.dumps(request(shape=[], data=[1])).encode(), None, scalar).tensors[0]) == np.array(1, "<f4").tobytes()
    assert refused(request(shape=[], data=[[1]]), scalar) == ("wrong_data_length", "inputs[0].data")


def test_declared_lengths_that_differ_from_the_data_are_refused() -> None:
    raw = np.array([1, 2], "<f4").tobytes()
    body, head = binary(raw)
    assert refused(body[:-1], header_length=head)[0] == "binary_length"
    assert refused(body + b"x", header_length=head)[0] == "binary_length"
    assert refused(body, header_length=0)[0] == "header_length"
    assert refused(body, header_length=len(body) + 1)[0] == "header_length"
    assert refused(*_sized(raw, 4))[0] == "wrong_data_length"
    assert refused(*_sized(raw, -8))[0] == "binary_length"
    assert refused(*_sized(raw, 10**18))[0] == "binary_length"
    assert refused(*_sized(raw, "8"))[0] == "binary_length"


def _sized(raw: bytes, size: Any) -> tuple[bytes, Interface, int]:
    body, head = binary(raw, parameters={"binary_data_size": size})
    return (body[: head + size] if isinstance(size, int) and 0 < size < len(raw) else body), ONE, head


def test_binary_nan_and_infinity_are_refused() -> None:
    for value in (np.nan, np.inf, -np.inf):
        body, head = binary(np.array([1, value], "<f4").tobytes())
        assert refused(body, header_length=head)[0] == "not_finite"


def test_nan_and_infinity_are_values_of_an_input_whose_description_says_so() -> None:
    imputer = Interface((Tensor("x", "FP32", (-1, 2), nan_allowed=True),), ONE.outputs)
    raw = np.array([np.nan, -np.inf], "<f4").tobytes()
    body, head = binary(raw)
    assert bytes(parse(body, head, imputer).tensors[0]) == raw


def test_inputs_are_complete_and_none_is_twice() -> None:
    n = {"name": "n", "datatype": "INT8", "shape": [1], "data": [7]}
    s = {"name": "s", "datatype": "BYTES", "shape": [1], "data": ["é"]}
    x = request()["inputs"][0]
    call = parse(json.dumps({"inputs": [s, n, x]}).encode(), None, MANY)
    assert [bytes(t) for t in call.tensors][1:] == [b"\x07", b"\x02\x00\x00\x00\xc3\xa9"]
    assert refused({"inputs": [x, n]}, MANY)[0] == "missing_input"
    assert refused({"inputs": [x, n, s, x]}, MANY)[0] == "duplicate_input"
    assert refused({"inputs": [x, n | {"data": [300]}, s]}, MANY) == ("out_of_range", "inputs[1].data")
    assert refused({"inputs": [x, n | {"data": [1.5]}, s]}, MANY) == ("wrong_data", "inputs[1].data")


def test_only_known_outputs_are_asked_for_and_in_the_order_asked() -> None:
    call = parse(
        json.dumps(request() | {"outputs": [{"name": "label", "parameters": {"binary_data": True}}, {"name": "y"}]}).encode(), None, ONE
    )
    assert call.wanted == ((1, True), (0, False))
    assert refused(request() | {"outputs": [{"name": "q"}]}) == ("unknown_output", "outputs[0].name")
    assert refused(request() | {"outputs": [{"name": "y"}, {"name": "y"}]})[0] == "duplicate_output"
    assert refused(request() | {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]})[0] == "not_a_boolean"
    assert refused(request() | {"outputs": [{"name": "y", "parameters": {"classification": 2}}]})[0] == "unsupported_parameter"


def test_an_answer_says_its_shapes_and_carries_binary_after_its_json() -> None:
    call = parse(
        json.dumps(request() | {"id": "7", "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "label"}]}).encode(),
        None,
        ONE,
    )
    raw = np.array([[1, 2]], "<f4").tobytes()
    body, head = render("m", "1.0.0", call, (OutputTensor((1, 2), raw), OutputTensor((1,), np.array([3]).tobytes())), ONE)
    assert head is not None
    answer = json.loads(body[:head])
    assert body[head:] == raw
    assert answer["id"] == "7" and answer["model_version"] == "1.0.0"
    assert answer["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    assert answer["outputs"][1] == {"name": "label", "datatype": "INT64", "shape": [1], "data": [3]}


WORDS = st.sampled_from(["name", "shape", "data", "datatype", "parameters", "binary_data_size", "inputs", "outputs"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(WORDS, v, max_size=4),
    max_leaves=12,
)


@given(JSON, st.binary(max_size=20), st.none() | st.integers(0, 400))
def test_any_body_is_a_call_or_a_refusal(value: Any, tail: bytes, header: int | None) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": value}
    for body in (value, {"inputs": value}, {"inputs": [value]}, {"inputs": [tensor]}):
        with suppress(Refused):
            parse(json.dumps(body).encode() + tail, header, ONE)
