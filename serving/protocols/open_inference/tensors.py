"""The Open Inference Protocol's tensors: a request body checked against a version's interface, and its answer.

Every mistake in a body is found here, before any batch, so that one caller's mistake never fails another's call (K16).
Source: KServe Open Inference Protocol v2 with the binary tensor data extension.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, cast

import numpy as np
import orjson

from serving.inference import DTYPES, Inference, OutputTensor, Raw, bytes_elements, length_at
from serving.model_interface import Interface, Tensor
from serving.refused import bad

RANK_MAX = 16
"""More axes than any tensor has; bounds the flattening below."""
ID_CHARS_MAX = 256
_REQUEST = frozenset({"id", "parameters", "inputs", "outputs"})
_INPUT = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT = frozenset({"name", "parameters"})
_NUMBER = {int, float}


def parse(body: Raw, header_length: int | None, interface: Interface) -> Inference:
    """A request body, checked against the interface. Raises Refused with the field at fault."""
    head, tail = _split(body, header_length)
    try:
        loaded: object = orjson.loads(head)
    except orjson.JSONDecodeError as e:
        raise bad("invalid_json", f"the body is not JSON: {e}") from None
    request = _object(loaded, "", _REQUEST)
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise bad("missing_inputs", "inputs must be a list of tensors", "inputs")
    wanted = _wanted(request, interface)
    raws, shapes = _inputs(cast(list[object], inputs), tail, interface)
    rows = {shape[0] for shape in shapes} if interface.stackable else set[int]()
    stacks = len(rows) == 1
    signature = tuple(shape[1:] for shape in shapes) if stacks else (*shapes,)
    return Inference(_id(request), rows.pop() if stacks else 0, signature, raws, wanted)


def _split(body: Raw, header_length: int | None) -> tuple[Raw, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not 0 < header_length <= len(body):
        raise bad(
            "header_length",
            f"the header length {header_length} is not within the {len(body)} bytes of the body",
            "Inference-Header-Content-Length",
        )
    view = memoryview(body)
    return view[:header_length], view[header_length:]


def _id(request: dict[str, object]) -> str:
    found = request.get("id", "")
    if not isinstance(found, str) or len(found) > ID_CHARS_MAX:
        raise bad("invalid_id", f"id must be text of at most {ID_CHARS_MAX} characters", "id")
    return found


def _object(value: object, at: str, known: frozenset[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise bad("not_an_object", "an object was expected", at)
    found = cast(dict[str, object], value)
    unknown = found.keys() - known
    if unknown:
        name = min(unknown)[:80]
        raise bad(
            "unknown_field", f"{name} is no field of the protocol", f"{at}.{name}".lstrip("."), f"known fields: {', '.join(sorted(known))}"
        )
    return found


def _shown(value: object) -> str:
    """A caller's value as it may stand in a message: never a structure, whose text may be very long or deep."""
    return repr(value[:80]) if isinstance(value, str) else type(value).__name__


def _parameters(holder: dict[str, object], at: str) -> dict[str, object]:
    found = holder.get("parameters", {})
    if not isinstance(found, dict):
        raise bad("not_an_object", "parameters must be an object", f"{at}.parameters".lstrip("."))
    parameters = cast(dict[str, object], found)
    for name in ("shared_memory_region", "classification"):
        if parameters.get(name):
            raise bad(
                "unsupported_parameter",
                f"{name} is not offered here",
                f"{at}.parameters.{name}".lstrip("."),
                "send and ask for plain tensors",
            )
    return parameters


def _wanted(request: dict[str, object], interface: Interface) -> tuple[tuple[int, bool], ...]:
    all_binary = _flag(_parameters(request, ""), "binary_data_output", "parameters")
    outputs = request.get("outputs")
    if outputs is None or outputs == []:
        return tuple((i, all_binary) for i in range(len(interface.outputs)))
    if not isinstance(outputs, list):
        raise bad("not_a_list", "outputs must be a list", "outputs")
    names = {t.name: i for i, t in enumerate(interface.outputs)}
    found: dict[int, bool] = {}
    for i, item in enumerate(cast(list[object], outputs)):
        at = f"outputs[{i}]"
        output = _object(item, at, _OUTPUT)
        name = output.get("name")
        if not isinstance(name, str) or name not in names:
            raise bad("unknown_output", f"the model has no output {_shown(name)}", f"{at}.name", f"outputs: {', '.join(names)}")
        if names[name] in found:
            raise bad("duplicate_output", f"output {name} is asked for twice", f"{at}.name")
        parameters = _parameters(output, at)
        found[names[name]] = _flag(parameters, "binary_data", f"{at}.parameters") if "binary_data" in parameters else all_binary
    return tuple(found.items())


def _flag(parameters: dict[str, object], name: str, at: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise bad("not_a_boolean", f"{name} must be true or false", f"{at}.{name}")
    return value


def _inputs(inputs: list[object], tail: memoryview, interface: Interface) -> tuple[tuple[Raw, ...], tuple[tuple[int, ...], ...]]:
    declared = {t.name: i for i, t in enumerate(interface.inputs)}
    raws: list[Raw | None] = [None] * len(declared)
    shapes: list[tuple[int, ...]] = [()] * len(declared)
    taken = 0
    for i, item in enumerate(inputs):
        at = f"inputs[{i}]"
        tensor = _object(item, at, _INPUT)
        name = tensor.get("name")
        if not isinstance(name, str) or name not in declared:
            raise bad("unknown_input", f"the model has no input {_shown(name)}", f"{at}.name", f"inputs: {', '.join(declared)}")
        index = declared[name]
        if raws[index] is not None:
            raise bad("duplicate_input", f"input {name} is there twice", f"{at}.name")
        want = interface.inputs[index]
        if tensor.get("datatype") != want.datatype:
            raise bad("wrong_datatype", f"input {name} is {want.datatype}, not {_shown(tensor.get('datatype'))}", f"{at}.datatype")
        shape = _shape(tensor.get("shape"), want, at)
        size = _parameters(tensor, at).get("binary_data_size")
        if size is not None:
            raw, taken = _binary(tensor, size, tail, taken, at)
            _check_binary(raw, shape, want, at)
        elif "data" in tensor:
            raw = _from_json(tensor["data"], shape, want, at)
        else:
            raise bad("missing_data", f"input {name} has neither data nor parameters.binary_data_size", at)
        raws[index], shapes[index] = raw, shape
    missing = [n for n, p in declared.items() if raws[p] is None]
    if missing:
        raise bad("missing_input", f"input {missing[0]} is missing", "inputs")
    if taken != len(tail):
        raise bad("binary_length", f"{len(tail)} bytes follow the header, the inputs take {taken}", "inputs")
    return cast(tuple[Raw, ...], tuple(raws)), tuple(shapes)


def _shape(value: object, want: Tensor, at: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(cast(list[object], value)) > RANK_MAX:
        raise bad("invalid_shape", f"shape must be a list of at most {RANK_MAX} numbers", f"{at}.shape")
    shape = cast(list[object], value)
    if any(type(n) is not int or n < 1 or n > 1 << 31 for n in shape):  # type: ignore[operator]
        raise bad("invalid_shape", "each dimension must be a whole number from 1 on", f"{at}.shape")
    found = tuple(cast(list[int], shape))
    if len(found) != len(want.shape) or any(w not in (-1, n) for n, w in zip(found, want.shape, strict=True)):
        raise bad(
            "wrong_shape", f"input {want.name} has shape {list(want.shape)}, not {list(found)}", f"{at}.shape", "-1 stands for any length"
        )
    return found


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _binary(tensor: dict[str, object], size: object, tail: memoryview, taken: int, at: str) -> tuple[memoryview, int]:
    at_size = f"{at}.parameters.binary_data_size"
    if type(size) is not int or size < 0:
        raise bad("binary_length", "binary_data_size must be a whole number", at_size)
    if "data" in tensor:
        raise bad("two_kinds_of_data", "an input has data or binary data, not both", at)
    if size > len(tail) - taken:
        raise bad("binary_length", f"{size} bytes are announced, {len(tail) - taken} are left in the body", at_size)
    return tail[taken : taken + size], taken + size


def _check_binary(raw: memoryview, shape: tuple[int, ...], want: Tensor, at: str) -> None:
    dtype = DTYPES.get(want.datatype)
    if dtype is None:
        _check_bytes(raw, _count(shape), at)
        return
    if len(raw) != _count(shape) * dtype.itemsize:
        raise bad(
            "wrong_data_length", f"shape {list(shape)} of {want.datatype} takes {_count(shape) * dtype.itemsize} bytes, not {len(raw)}", at
        )
    if dtype.kind == "f" and not want.nan_allowed:
        _check_finite(np.frombuffer(raw, dtype), at)
    elif dtype.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise bad("wrong_data", "a BOOL is one byte, 0 or 1", at)


def _check_finite(array: np.ndarray[Any, Any], at: str) -> None:
    if not np.isfinite(array).all():
        remedy = "send finite numbers of the declared precision; a model that takes others says so: nan_allowed"
        raise bad("not_finite", "NaN and infinity are no values of this input", at, remedy)


def _check_bytes(raw: memoryview, count: int, at: str) -> None:
    """BYTES elements: each a 4-byte little-endian length and so many bytes."""
    at_byte = found = 0
    while at_byte < len(raw) and found < count:
        if at_byte + 4 > len(raw):
            break
        at_byte += 4 + length_at(raw, at_byte)[0]
        found += 1
    if found != count or at_byte != len(raw):
        raise bad("wrong_data_length", f"the bytes do not hold exactly {count} elements with their lengths", at)


def _from_json(data: object, shape: tuple[int, ...], want: Tensor, at: str) -> Raw:
    flat = _flatten(data, shape, at)
    if len(flat) != _count(shape):
        raise bad("wrong_data_length", f"shape {list(shape)} takes {_count(shape)} elements, not {len(flat)}", f"{at}.data")
    kinds: set[type] = set(map(type, flat))
    dtype = DTYPES.get(want.datatype)
    if dtype is None:
        return _bytes_of(flat, kinds, at)
    allowed = _NUMBER if dtype.kind == "f" else {bool} if dtype.kind == "b" else {int}
    if not kinds <= allowed:
        raise bad(
            "wrong_data", f"data of {want.datatype} holds {', '.join(sorted(k.__name__ for k in kinds - allowed))[:80]}", f"{at}.data"
        )
    try:
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
            array = np.array(flat, dtype)
    except (OverflowError, ValueError):
        raise bad("out_of_range", f"a number does not fit {want.datatype}", f"{at}.data") from None
    if dtype.kind == "f":
        _check_finite(array, f"{at}.data")
    return array.tobytes()


def _bytes_of(flat: list[object], kinds: set[type], at: str) -> bytes:
    if not kinds <= {str}:
        raise bad("wrong_data", "data of BYTES must be text", f"{at}.data")
    encoded = [cast(str, s).encode() for s in flat]
    return b"".join(chain.from_iterable((len(e).to_bytes(4, "little"), e) for e in encoded))


def _flatten(data: object, shape: tuple[int, ...], at: str) -> list[object]:
    """The elements of data that is flat, or nested exactly as the shape says."""
    if not isinstance(data, list):
        raise bad("wrong_data", "data must be a list", f"{at}.data")
    level = cast(list[object], data)
    if not level or not isinstance(level[0], list):
        return level
    if not shape or len(level) != shape[0]:
        raise bad("wrong_data_length", f"the data is not nested as shape {list(shape)} says", f"{at}.data")
    for size in shape[1:]:
        if set(map(type, level)) != {list} or set(map(len, cast(list[list[object]], level))) != {size}:
            raise bad("wrong_data_length", f"the data is not nested as shape {list(shape)} says", f"{at}.data")
        level = list(chain.from_iterable(cast(list[list[object]], level)))
    return level


def render(
    model: str, version: str, inference: Inference, outputs: tuple[OutputTensor, ...], interface: Interface
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part when binary tensors follow it."""
    entries: list[dict[str, Any]] = []
    binary: list[Raw] = []
    for (index, as_binary), output in zip(inference.wanted, outputs, strict=True):
        declared = interface.outputs[index]
        entry: dict[str, Any] = {"name": declared.name, "datatype": declared.datatype, "shape": output.shape}
        if as_binary:
            entry["parameters"] = {"binary_data_size": len(output.data)}
            binary.append(output.data)
        else:
            entry["data"] = _to_json(output, declared.datatype)
        entries.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if inference.id:
        answer["id"] = inference.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((head, *binary)), len(head)) if binary else (head, None)


def _to_json(output: OutputTensor, datatype: str) -> Any:
    dtype = DTYPES.get(datatype)
    return np.frombuffer(output.data, dtype) if dtype is not None else [e.decode(errors="replace") for e in bytes_elements(output.data)]
