"""How many inferences travel as one Ray call: packed into one blob on the way there, and into one on the way back.

Pickling one bytes object costs a hundredth of pickling sixty-four lists of arrays. A blob is a 4-byte length, a JSON header and
the tensors one after another. Calls whose shapes agree but for the first dimension form one *run* of the model; others run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from serving.inference import Inference, OutputTensor, Predicted, Prediction, PredictionFailed, Raw

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunInput:
    """Tensors for one run of the model. `rows` has one entry per call; a call that cannot share has rows (0,)."""

    rows: tuple[int, ...]
    shapes: tuple[Shape, ...]
    """Of each input, whole."""
    tensors: tuple[Raw, ...]


@dataclass(frozen=True, slots=True)
class BatchReply:
    replica: str
    results: tuple[Prediction, ...]
    """In the order the calls were packed."""


def pack(calls: Sequence[Inference]) -> tuple[bytes, list[int]]:
    """The blob, and for each place in the reply the index of its call."""
    groups: dict[object, list[int]] = {}
    for i, call in enumerate(calls):
        groups.setdefault(call.signature if call.rows else i, []).append(i)
    runs: list[dict[str, Any]] = []
    payload: list[Raw] = []
    order: list[int] = []
    for group in groups.values():
        first = calls[group[0]]
        rows = [calls[i].rows for i in group]
        head = (sum(rows),) if first.rows else ()
        parts = [[calls[i].tensors[t] for i in group] for t in range(len(first.tensors))]
        runs.append(
            {"rows": rows, "inputs": [[(*head, *shape), sum(map(len, p))] for shape, p in zip(first.signature, parts, strict=True)]}
        )
        for part in parts:
            payload += part
        order += group
    return _join({"runs": runs}, payload), order


def unpack(blob: Raw) -> list[RunInput]:
    header, body = _header(blob)
    runs: list[RunInput] = []
    at = 0
    for run in header["runs"]:
        tensors: list[Raw] = []
        for _, size in run["inputs"]:
            tensors.append(body[at : at + size])
            at += size
        runs.append(RunInput(tuple(run["rows"]), tuple(tuple(shape) for shape, _ in run["inputs"]), tuple(tensors)))
    return runs


def pack_reply(replica: str, results: Sequence[Prediction]) -> bytes:
    entries: list[Any] = []
    payload: list[Raw] = []
    for result in results:
        match result:
            case Predicted(outputs, cpu_us):
                entries.append([cpu_us, [[o.shape, len(o.data)] for o in outputs]])
                payload += [o.data for o in outputs]
            case PredictionFailed(message, cpu_us):
                entries.append([cpu_us, message])
    return _join({"replica": replica, "results": entries}, payload)


def unpack_reply(blob: Raw) -> BatchReply:
    header, body = _header(blob)
    results: list[Prediction] = []
    at = 0
    for cpu_us, entry in header["results"]:
        if isinstance(entry, str):
            results.append(PredictionFailed(entry, cpu_us))
            continue
        outputs: list[OutputTensor] = []
        for shape, size in cast(list[tuple[list[int], int]], entry):
            outputs.append(OutputTensor(tuple(shape), body[at : at + size]))
            at += size
        results.append(Predicted(tuple(outputs), cpu_us))
    return BatchReply(header["replica"], tuple(results))


def share(total: int, weights: Sequence[int]) -> list[int]:
    """A whole number split by weight; what rounding leaves goes to the first, so that the parts add up."""
    whole = sum(weights) or len(weights)
    parts = [total * (w or 1) // whole for w in weights]
    parts[0] += total - sum(parts)
    return parts


def _join(header: dict[str, Any], payload: list[Raw]) -> bytes:
    head = orjson.dumps(header)
    return b"".join((len(head).to_bytes(4, "big"), head, *payload))


def _header(blob: Raw) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(blob)
    size = int.from_bytes(view[:4], "big")
    return orjson.loads(view[4 : 4 + size]), view[4 + size :]
