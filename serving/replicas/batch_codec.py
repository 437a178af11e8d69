"""The format of a batch between gateway and replica: many inferences in one blob, and their predictions in one blob back.

Pickling one bytes object costs a hundredth of pickling sixty-four lists of arrays. A blob is a 4-byte length, a JSON header and
the tensors one after another. Calls whose shapes differ only in the first dimension form one run of the model; others run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never, cast

import orjson

from serving.inference import Inference, OutputTensor, Predicted, Prediction, PredictionFailed, Raw, RunInput


@dataclass(frozen=True, slots=True)
class BatchReply:
    replica: str
    predictions: tuple[Prediction, ...]
    """In the order the calls were packed."""


def pack(calls: Sequence[Inference]) -> tuple[bytes, list[int]]:
    """The blob, and for each prediction of the reply the index of its call."""
    groups: dict[object, list[int]] = {}
    for i, call in enumerate(calls):
        groups.setdefault(call.signature if call.rows else i, []).append(i)
    runs: list[dict[str, Any]] = []
    payload: list[Raw] = []
    order: list[int] = []
    for group in groups.values():
        first = calls[group[0]]
        rows, wanted = [calls[i].rows for i in group], [calls[i].wanted for i in group]
        head = (sum(rows),) if first.rows else ()
        parts = [[calls[i].tensors[t] for i in group] for t in range(len(first.tensors))]
        runs.append(
            {
                "rows": rows,
                "wanted": wanted if any(asked != wanted[0] for asked in wanted) else wanted[:1],  # nearly always all ask for the same
                "inputs": [[(*head, *shape), sum(map(len, p))] for shape, p in zip(first.signature, parts, strict=True)],
            }
        )
        for part in parts:
            payload += part
        order += group
    return _join({"runs": runs}, payload), order


def unpack(blob: Raw) -> list[RunInput]:
    """What `pack` packed."""
    header, body = _header(blob)
    runs: list[RunInput] = []
    at = 0
    for run in header["runs"]:
        tensors: list[Raw] = []
        for _, size in run["inputs"]:
            tensors.append(body[at : at + size])
            at += size
        wanted = tuple(tuple((index, as_binary) for index, as_binary in asked) for asked in run["wanted"])
        rows = tuple(run["rows"])
        wanted *= len(rows) // len(wanted)
        runs.append(RunInput(rows, tuple(tuple(shape) for shape, _ in run["inputs"]), tuple(tensors), wanted))
    return runs


def pack_reply(replica: str, predictions: Sequence[Prediction]) -> bytes:
    """The blob of a reply; `predictions` in the order of the runs."""
    entries: list[Any] = []
    payload: list[Raw] = []
    for prediction in predictions:
        match prediction:
            case Predicted(outputs, cpu_us):
                entries.append([cpu_us, [[o.shape, len(o.data)] for o in outputs]])
                payload += [o.data for o in outputs]
            case PredictionFailed(message, cpu_us, reply_full):
                entries.append([cpu_us, None if reply_full else message])
            case _:
                assert_never(prediction)
    return _join({"replica": replica, "predictions": entries}, payload)


def unpack_reply(blob: Raw) -> BatchReply:
    """What `pack_reply` packed."""
    header, body = _header(blob)
    predictions: list[Prediction] = []
    at = 0
    for cpu_us, entry in header["predictions"]:
        if entry is None or isinstance(entry, str):
            predictions.append(PredictionFailed(entry or "", cpu_us, reply_full=entry is None))
            continue
        outputs: list[OutputTensor] = []
        for shape, size in cast(list[tuple[list[int], int]], entry):
            outputs.append(OutputTensor(tuple(shape), body[at : at + size]))
            at += size
        predictions.append(Predicted(tuple(outputs), cpu_us))
    return BatchReply(header["replica"], tuple(predictions))


def _join(header: dict[str, Any], payload: list[Raw]) -> bytes:
    head = orjson.dumps(header)
    return b"".join((len(head).to_bytes(4, "big"), head, *payload))


def _header(blob: Raw) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(blob)
    size = int.from_bytes(view[:4], "big")
    return orjson.loads(view[4 : 4 + size]), view[4 + size :]
