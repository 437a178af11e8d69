"""Other people's programs work: NVIDIA's own Open Inference client, unchanged, against the gateway."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support.gateway_stack import SECRET, GatewayStack, M, check_answers

PIXELS = np.arange(128, dtype=np.float32).reshape(2, 64)


def key() -> dict[str, str]:
    """Made anew each time: the client writes its own headers into what it is given."""
    return {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture
def client(gateway: GatewayStack) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"{gateway.settings.host}:{gateway.settings.gateway_port}") as found:
        yield found


def numbers(answer: triton.InferResult, output: str) -> np.ndarray:
    found = answer.as_numpy(output)
    assert found is not None, f"{output} is not in the answer"
    return found


def pixels(*, binary: bool, array: np.ndarray = PIXELS) -> triton.InferInput:
    tensor = triton.InferInput("pixels", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_the_server_and_the_model_are_live_ready_and_described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(M, headers=key()) and client.is_model_ready(M, "1.0.0", headers=key())
    assert not client.is_model_ready(M, "9.0.0", headers=key())
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    about = client.get_model_metadata(M, headers=key())
    assert about["name"] == M and about["versions"] == ["1.0.0"]
    assert about["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}]
    assert [o["name"] for o in about["outputs"]] == ["label", "scores"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_inference_is_the_same_in_binary_and_json(
    gateway: GatewayStack, client: triton.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("scores", "label")]
    answer = client.infer(M, [pixels(binary=binary_in)], outputs=wanted, request_id="7", headers=key())
    scores, label = numbers(answer, "scores"), numbers(answer, "label")
    assert scores.shape == (2, 10) and scores.dtype == np.float32
    assert label.tolist() == scores.argmax(axis=1).tolist()
    assert answer.get_response()["id"] == "7" and answer.get_response()["model_version"] == "1.0.0"


def test_all_outputs_come_when_none_is_named(client: triton.InferenceServerClient) -> None:
    answer = client.infer(M, [pixels(binary=True)], headers=key())
    assert numbers(answer, "label").shape == (2,) and numbers(answer, "scores").shape == (2, 10)


def test_the_client_reads_our_refusals(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as wrong_shape:
        client.infer(M, [pixels(binary=True, array=PIXELS[:, :10])], headers=key())
    assert wrong_shape.value.status() == "400" and "shape" in wrong_shape.value.message()
    with pytest.raises(InferenceServerException) as not_finite:
        client.infer(M, [pixels(binary=True, array=np.full((1, 64), np.nan, np.float32))], headers=key())
    assert "NaN" in not_finite.value.message()
    with pytest.raises(InferenceServerException) as no_key:
        client.infer(M, [pixels(binary=True)])
    assert no_key.value.status() == "401"


def test_bad_bodies_get_problem_documents_and_never_a_server_error(gateway: GatewayStack) -> None:
    url = f"{gateway.settings.gateway}/v2/models/{M}/infer"
    bodies = {
        b"{": 400,
        b"\xff": 400,
        b"[" * 50_000: 400,
        b'{"inputs":[{"name":"pixels","datatype":"FP32","shape":[1,64],"data":[1,2]}]}': 400,
        b'{"inputs":' + b" " * (10 << 20) + b"[]}": 413,
    }
    for body, status in bodies.items():
        answer = gateway.client.post(url, content=body, headers=key(), timeout=30)
        problem = answer.json()
        assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
        assert problem["code"] and problem["remedy"] and problem["status"] == status
    good = gateway.infer()
    assert good.status_code == 200
    check_answers(gateway, [good])
