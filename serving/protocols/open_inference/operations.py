"""The paths and documents of the Open Inference Protocol v2. Source: KServe Open Inference Protocol, HTTP/REST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from serving.http import JSON, whole_number
from serving.inference import DTYPES, Inference, OutputTensor
from serving.model_interface import Interface, Tensor
from serving.protocols.open_inference.tensors import parse, render
from serving.protocols.operations import CheckReady, DescribeVersion, Infer, Operation, ServedVersion, ShowDocument
from serving.refused import Headers, Refused

SERVER = orjson.dumps({"name": "modelmarket", "version": "0.1.0", "extensions": ["binary_tensor_data"]})
HEADER_LENGTH = "Inference-Header-Content-Length"


class OpenInference:
    """Implements `InferenceFormat`: JSON, or JSON with binary tensors behind it."""

    def parse(self, headers: dict[bytes, bytes], body: bytes, interface: Interface) -> Inference:
        return parse(body, whole_number(headers, HEADER_LENGTH), interface)

    def text_bytes(self, headers: dict[bytes, bytes], size: int, interface: Interface) -> int:
        header_length = whole_number(headers, HEADER_LENGTH)
        if header_length is None or any(t.datatype not in DTYPES for t in interface.inputs):
            return size
        return header_length

    def render(self, served: ServedVersion, inference: Inference, outputs: tuple[OutputTensor, ...]) -> tuple[bytes, Headers]:
        body, header_length = render(served.model, served.version, inference, outputs, served.interface)
        if header_length is None:
            return body, JSON
        length = (HEADER_LENGTH.lower().encode(), str(header_length).encode())
        return body, ((b"content-type", b"application/octet-stream"), length)


FORMAT = OpenInference()


def operation(segments: list[str]) -> Operation | None:
    """The operation at a path below /v2; None when nothing is there. Raises Refused (404) below a model."""
    match segments:
        case ["models", name, "infer"]:
            return Infer(name, None, FORMAT)
        case ["models", name, *rest]:
            return _of_model(name, rest)
        case []:
            return ShowDocument(SERVER)
        case ["health", "live"]:
            return ShowDocument(b"{}")
        case ["health", "ready"]:
            return CheckReady(b"{}")
        case _:
            return None


def _of_model(name: str, rest: list[str]) -> Operation:
    version = None
    if rest[:1] == ["versions"] and len(rest) > 1:
        version, rest = rest[1], rest[2:]
    match rest:
        case []:
            return DescribeVersion("metadata", name, version, metadata)
        case ["ready"]:
            return DescribeVersion("ready", name, version, ready)
        case ["infer"]:
            return Infer(name, version, FORMAT)
        case _:
            raise Refused(404, "not_found", f"nothing is at {'/'.join(rest)[:200]} of a model", "", "a model has infer and ready")


def metadata(served: ServedVersion, versions: Sequence[str]) -> bytes:
    body = {
        "name": served.model,
        "versions": versions,
        "platform": f"{served.platform}_onnxruntime" if served.platform == "onnx" else served.platform,
        "inputs": [_tensor(t) for t in served.interface.inputs],
        "outputs": [_tensor(t) for t in served.interface.outputs],
    }
    return orjson.dumps(body)


def ready(served: ServedVersion, _versions: Sequence[str]) -> bytes:
    return orjson.dumps({"name": served.model, "version": served.version, "ready": True})


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
