"""The inspection of an uploaded file reads what will run; a file that cannot run is refused before anybody reviews it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from commands.artifacts.inspection import Signature, contradictions, inspect, load_once
from commands.artifacts.sandbox import NETWORK_OPEN, run_confined
from commands.processor.rejection import Rejected
from events.facts.models import Technical, TensorSpec
from serving.inference import Predicted, RunInput
from serving.model_interface import Interface, Tensor
from serving.runtimes.onnx import OnnxRuntime


def model(*nodes: onnx.NodeProto, inputs: Any = None, outputs: Any = None, **more: Any) -> bytes:
    """A model from x to y, rows of four FP32 values unless the test says otherwise."""
    x = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])]
    y = outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])]
    graph = helper.make_graph(list(nodes) or [helper.make_node("Add", ["x", "x"], ["y"])], "g", x, y)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more).SerializeToString()


def written(folder: Path, body: bytes) -> Path:
    file = folder / "model.onnx"
    file.write_bytes(body)
    return file


def described(shape: tuple[int, ...], of_output: tuple[int, ...] | None = None) -> Technical:
    """Of input x and output y, of one shape unless the output's is named."""
    x, y = (TensorSpec(name=name, datatype="FP32", shape=s) for name, s in (("x", shape), ("y", of_output or shape)))
    return Technical(format="onnx", framework="f", precision="FP32", inputs=(x,), outputs=(y,))


def test_a_file_that_is_also_of_the_other_format_runs_as_the_one_that_was_read(tmp_path: Path) -> None:
    both = model(producer_name="ORTM")
    assert both[4:8] == b"ORTM"  # where the runtime looks for its own format
    file = written(tmp_path, both)
    assert isinstance(inspect(file), Signature) and load_once(file) is None
    interface = Interface((Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 4)),))
    (result,) = OnnxRuntime(both, interface).predict([RunInput((1,), ((1, 4),), (np.ones(4, "float32").tobytes(),), (((0, True),),))])
    assert isinstance(result, Predicted)
    assert np.frombuffer(result.outputs[0].data, "float32").tolist() == [2.0] * 4


def test_a_dimension_that_is_fixed_in_the_file_cannot_be_described_as_free(tmp_path: Path) -> None:
    fixed = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4])] for name in ("x", "y")]
    signature = inspect(written(tmp_path, model(inputs=fixed[0], outputs=fixed[1])))
    assert isinstance(signature, Signature)
    assert contradictions(signature, described((-1, 4))) == ()
    assert contradictions(signature, described((8, 4), (-1, 4))) == ()  # callers are held to it
    (wide,) = contradictions(signature, described((-1, -1)))
    assert "input 'x'" in wide and "[-1, 4] in the file" in wide


def test_an_output_promises_no_more_than_the_file_does(tmp_path: Path) -> None:
    """Nothing compares answers with the description: a caller and the compatibility gate would believe a dimension that no answer has."""
    signature = inspect(written(tmp_path, model()))
    assert isinstance(signature, Signature)
    (narrow,) = contradictions(signature, described((8, 4)))
    assert "output 'y' has shape [-1, 4] in the file, [8, 4] in the description" in narrow
    assert len(contradictions(signature, described((-1, 4), (-1, 5)))) == 1
    for less in ((-1, 4), (-1, -1)):
        assert contradictions(signature, described((-1, 4), less)) == ()


def test_an_output_that_cannot_be_served_is_refused_with_how_to_export_it(tmp_path: Path) -> None:
    zipmap = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    value = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [helper.make_value_info("y", helper.make_sequence_type_proto(value))]
    signature = inspect(written(tmp_path, model(zipmap, outputs=outputs)))
    assert isinstance(signature, Signature)
    (contradiction,) = contradictions(signature, described((-1, 4)))
    assert "zipmap=False" in contradiction


STRINGS = [[helper.make_tensor_value_info(name, TensorProto.STRING, [None])] for name in ("x", "y")]


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (
            model(
                helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER", locale="xx_YY.UTF-8"),
                inputs=STRINGS[0],
                outputs=STRINGS[1],
            ),
            "without a locale",
        ),
        (model(helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.microsoft")), "operators that ONNX Runtime has"),
    ],
    ids=["a locale that is not there", "an operator that is not there"],
)
def test_a_file_that_cannot_be_loaded_is_refused_with_a_remedy(tmp_path: Path, body: bytes, remedy: str) -> None:
    file = written(tmp_path, body)
    assert isinstance(inspect(file), Signature)  # it is ONNX
    failed = load_once(file)
    assert isinstance(failed, Rejected)
    assert failed.code == "artifact_not_loadable" and remedy in failed.violations[0].remedy


def test_the_inspection_process_has_an_empty_environment_limits_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMARKET_ADMIN_KEY", "mm_secret")
    report = run_confined("tests.unit.commands.confined_probe")
    assert report is not None
    assert report["environment"] in ([], ["LC_CTYPE"])  # Python's own, where the locale is C
    assert all(bound > 0 for bound in report["bounds"]) and not report["wrote"]
    assert report["reached"] == ("refused" if report["network"].startswith(NETWORK_OPEN) else "no network")
