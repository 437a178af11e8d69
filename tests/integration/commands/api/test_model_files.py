"""Files of models: what is uploaded, described and loaded."""

from __future__ import annotations

from typing import Any

import httpx
import onnx
from onnx import TensorProto, helper

from tests.support.steps.command_side import (
    ARTIFACT_MAX,
    CommandSide,
    TenantKeys,
    digest_of,
    model_file,
    problem,
    technical,
)


def invalid_files() -> dict[str, tuple[bytes, str]]:
    good = model_file()
    external = onnx.load_from_string(model_file())
    tensor = external.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    hidden = onnx.load_from_string(model_file())
    attribute = hidden.graph.node[0].attribute.add()
    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    attribute.t.name, attribute.t.data_type, attribute.t.data_location = "t", TensorProto.FLOAT, TensorProto.EXTERNAL
    future = onnx.load_from_string(model_file())
    future.opset_import[0].version = 9999
    foreign = onnx.load_from_string(model_file())
    foreign.opset_import.add(domain="evil.ops", version=1)
    broken = onnx.load_from_string(model_file())
    broken.graph.node[0].input[1] = "nothing"
    pickle = b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."
    return {
        "empty": (b"", "artifact_not_onnx"),
        "pickle": (pickle, "artifact_not_onnx"),
        "text": (b"not a model" * 100, "artifact_not_onnx"),
        "truncated": (good[:-7], "artifact_not_onnx"),
        "external data": (external.SerializeToString(), "external_data"),
        "external data in an attribute": (hidden.SerializeToString(), "external_data"),
        "operators of the future": (future.SerializeToString(), "opset_unknown"),
        "operators of another vendor": (foreign.SerializeToString(), "opset_unknown"),
        "a graph that does not fit together": (broken.SerializeToString(), "artifact_invalid"),
    }


def test_an_invalid_upload_is_refused_and_leaves_no_file(side: CommandSide, acme: TenantKeys) -> None:
    http, folder = side.http, side.settings.folder
    acme.upload(model_file())
    before = sorted(p for p in folder.rglob("*") if "artifacts" in p.parts or "uploads" in p.parts)
    for what, (body, code) in invalid_files().items():
        answer = http("PUT", f"/v1/artifacts/{digest_of(body)}", acme.owner, content=body)
        assert answer.status_code == 422, (what, answer.text)
        assert answer.json()["code"] == code, (what, answer.text)
    good = model_file(3)
    problem(http("PUT", f"/v1/artifacts/{digest_of(good)}", acme.owner, content=good[:-1]), 422, "digest_mismatch")
    problem(http("PUT", "/v1/artifacts/sha256:zz", acme.owner, content=good), 422, "digest_malformed")
    big = model_file(width=ARTIFACT_MAX)
    problem(http("PUT", f"/v1/artifacts/{digest_of(big)}", acme.owner, content=big), 413, "artifact_too_large")
    assert sorted(p for p in folder.rglob("*") if "artifacts" in p.parts or "uploads" in p.parts) == before


def test_a_version_must_be_described_as_its_file_is(side: CommandSide, acme: TenantKeys) -> None:
    model, digest = acme.register(), acme.upload(model_file(5))

    def add(**more: Any) -> httpx.Response:
        return side.http(
            "POST",
            f"/v1/models/{model}/versions",
            acme.owner,
            json={"version": "1.0.0", "artifact": digest, "technical": technical(), **more},
        )

    problem(add(technical=technical(5)), 422, "description_differs")
    other = [{"name": "z", "datatype": "FP32", "shape": [-1, 4]}]
    found = problem(add(technical=technical(inputs=other)), 422, "description_differs")
    assert "the file has no input 'z', it has x" in found["detail"]
    problem(add(technical=technical(outputs=[{"name": "y", "datatype": "INT64", "shape": [-1, 4]}])), 422, "description_differs")
    problem(add(artifact="sha256:" + "0" * 64), 422, "artifact_missing")
    problem(add(lineage={"parents": ["model-vision-lab-nothing-v1.0.0"]}), 422, "parent_unknown")
    assert add().status_code == 201
    assert add(version="1.1.0", lineage={"parents": ["1.0.0", f"{model}-v1.0.0"]}).status_code == 201
    problem(add(), 409, "version_exists")


def test_a_file_that_cannot_be_loaded_is_refused_before_anybody_reviews_it(side: CommandSide, acme: TenantKeys) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("x", "y")]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.microsoft")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_model(
        helper.make_graph([node], "g", tensors[:1], tensors[1:]), opset_imports=opsets, ir_version=8
    ).SerializeToString()
    model = acme.register()
    assert acme.draft(model, "1.0.0", body).status_code == 201
    refusal = problem(side.http("POST", f"/v1/models/{model}/versions/1.0.0/submit", acme.owner), 422, "artifact_not_loadable")
    assert "operators that ONNX Runtime has" in refusal["remedy"]
    assert side.http.ok("GET", f"/v1/models/{model}", acme.owner)["versions"]["1.0.0"]["kind"] == "draft"
