"""Is this file the model it claims to be? Run as a process of its own, so that a malicious file can crash only that process.

`python -m commands.artifacts.inspection read FILE` prints one JSON object: the model's inputs and outputs, or what is wrong; `load FILE`
whether ONNX Runtime loads it. Both say whether they had a network. Allowed: ONNX without external data, of operator sets this build
knows. Pickles and other files that run code when loaded are rejected: they are not ONNX.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.artifacts.sandbox import confine, run_confined
from commands.processor.rejection import Rejected, invalid
from events.facts.models import Technical, TensorSpec

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
OPSET_MIN = 7
"""Older operator sets are not run by today's runtimes."""
MESSAGE_CHARS_MAX = 300
"""ONNX Runtime's messages carry whole graphs at times."""
_REMEDIES = {
    "locale": "export without a locale: the machines that run models have none but C and POSIX",
    "not implemented": "export with data types and operators that ONNX Runtime implements on a CPU",
    "could not find an implementation": "export with data types and operators that ONNX Runtime implements on a CPU",
    "not a registered function": "export with operators that ONNX Runtime has; none of a library of your own",
    "no op registered": "export with operators that ONNX Runtime has; none of a library of your own",
}
_REMEDY = "export the model to ONNX again, as one file, and check it with onnx.checker"


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs that a file really has. A datatype of "" is no tensor (a sequence or map)."""

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]


def inspect(file: Path) -> Signature | Rejected:
    """Blocks up to a minute."""
    report = _report("read", file)
    if isinstance(report, Rejected):
        return report
    return Signature(*(tuple((n, d, tuple(s)) for n, d, s in report[part]) for part in ("inputs", "outputs")))


def load_once(file: Path) -> Rejected | None:
    """Whether the runtime that will run the file can load it: a rejection with what to do. Blocks up to a minute."""
    report = _report("load", file)
    return report if isinstance(report, Rejected) else None


def _report(task: str, file: Path) -> dict[str, Any] | Rejected:
    try:
        report = run_confined("commands.artifacts.inspection", task, str(file))
    except TimeoutError as e:
        return invalid("artifact_unreadable", f"the file could not be checked: {e}", "artifact", _REMEDY)
    if report is None:
        return invalid("artifact_unreadable", "the inspection of the file crashed", "artifact", _REMEDY)
    if "code" in report:
        return invalid(report["code"], report["message"], "artifact", report.get("remedy", _REMEDY))
    return report


def contradictions(signature: Signature, technical: Technical) -> tuple[str, ...]:
    """Each way in which the description differs from the file."""
    found: list[str] = []
    for what, in_file, described in (("input", signature.inputs, technical.inputs), ("output", signature.outputs, technical.outputs)):
        real = {name: (datatype, shape) for name, datatype, shape in in_file}
        for tensor in described:
            if tensor.name not in real:
                found.append(f"the file has no {what} '{tensor.name}', it has {', '.join(real)}")
            else:
                found += _tensor(what, tensor, *real[tensor.name])
    inputs = {t.name for t in technical.inputs}
    found += [f"the file needs input '{name}', which is not described" for name, _, _ in signature.inputs if name not in inputs]
    return tuple(found)


def _tensor(what: str, described: TensorSpec, datatype: str, shape: tuple[int, ...]) -> list[str]:
    if not datatype:
        return [f"{what} '{described.name}' is a sequence or map in the file, which no caller can get: export with zipmap=False"]
    if datatype != described.datatype:
        return [f"{what} '{described.name}' is {datatype} in the file, {described.datatype} in the description"]
    # An input that is free in the file may be fixed in the description, which callers are held to. Nothing holds the model's answers to the
    # description, so of an output it may only promise what the file does, or less.
    narrow, wide = (described.shape, shape) if what == "input" else (shape, described.shape)
    if len(narrow) != len(wide) or any(bound not in (-1, n) for n, bound in zip(narrow, wide, strict=True)):
        return [f"{what} '{described.name}' has shape {list(shape)} in the file, {list(described.shape)} in the description"]
    return []


# --- what runs in the process of its own


def _main(task: str, file: str) -> dict[str, Any]:
    network = confine()
    return {**(_load(file) if task == "load" else _read(file)), "network": network}


def _load(file: str) -> dict[str, Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what runs is what was read
    try:
        ort.InferenceSession(Path(file).read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime raises its own classes and plain RuntimeError
        message = " ".join(str(e).split())[:MESSAGE_CHARS_MAX]
        return {**_problem("artifact_not_loadable", f"ONNX Runtime {ort.__version__}: {message}"), "remedy": _remedy(message.lower())}
    return {}


def _remedy(message: str) -> str:
    return next(
        (remedy for sign, remedy in _REMEDIES.items() if sign in message), "load it with onnxruntime yourself, and mend what it says"
    )


def _read(file: str) -> dict[str, Any]:
    import onnx
    from onnx.checker import ValidationError, check_model

    try:
        model = onnx.load(file, load_external_data=False)
        if not model.graph.node:
            return _problem("artifact_not_onnx", "the file is no ONNX model, or an empty one")
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
            return _problem("external_data", "the model refers to data outside its file")
        unknown = [f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import if not _known(o.domain, o.version)]
        if unknown:
            return _problem("opset_unknown", f"operator sets not allowed here: {', '.join(unknown)}")
        check_model(model)
    except ValidationError as e:
        return _problem("artifact_invalid", f"onnx.checker: {str(e)[:300]}")
    except Exception as e:  # the protobuf parser raises many kinds
        return _problem("artifact_not_onnx", f"the file is no ONNX model: {type(e).__name__}")
    weights = {t.name for t in model.graph.initializer}
    return {
        "inputs": [_value(v) for v in model.graph.input if v.name not in weights],
        "outputs": [_value(v) for v in model.graph.output],
    }


def _known(domain: str, version: int) -> bool:
    import onnx

    if domain not in DOMAINS:
        return False
    return domain not in ("", "ai.onnx") or OPSET_MIN <= version <= onnx.defs.onnx_opset_version()


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto anywhere in the message: weights, attributes, subgraphs, functions, training information."""
    pending = [message]
    while pending:
        node = pending.pop()
        if node.DESCRIPTOR.name == "TensorProto":
            yield node
            continue
        for field, value in node.ListFields():
            if field.message_type is not None:
                pending.extend(value if field.is_repeated else (value,))


def _value(value: Any) -> tuple[str, str, list[int]]:
    import numpy as np
    import onnx

    names = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "object": "BYTES", "str": "BYTES"}
    if not value.type.HasField("tensor_type"):
        return value.name, "", []
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    shape = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in tensor.shape.dim]
    return value.name, names.get(dtype, dtype.upper()), shape


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_main(*sys.argv[1:])))
