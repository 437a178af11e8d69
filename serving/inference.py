"""One inference between protocol, queue and runtime: checked input tensors, and what a runtime made of them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "UINT8": "u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "INT8": "i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
    }.items()
}
"""Element types of fixed size, little endian. BYTES has none: each element is a 4-byte little-endian length and its bytes."""

Raw = bytes | memoryview

length_at = struct.Struct("<I").unpack_from
"""(buffer, offset) → a 1-tuple with the length of the BYTES element that begins there."""

Wanted = tuple[tuple[int, bool], ...]
"""(index of the output, as binary) in the order asked for."""


@dataclass(frozen=True, slots=True)
class Inference:
    """A checked call: raw little-endian tensors in the order of the interface, and how the answer is wanted.

    `signature` is equal for calls that can share one run: the same shapes but for the first dimension, `rows`.
    """

    id: str
    rows: int
    signature: tuple[tuple[int, ...], ...]
    tensors: tuple[Raw, ...]
    wanted: Wanted

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(len(t) for t in self.tensors)


@dataclass(frozen=True, slots=True)
class RunInput:
    """Tensors for one run of the model. `rows` has one entry per call; a call that cannot share a run has rows (0,)."""

    rows: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of each input, first dimension included."""
    tensors: tuple[Raw, ...]
    wanted: tuple[Wanted, ...]
    """Of each call."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of one call; `data` is little endian, as `DTYPES` says."""

    shape: tuple[int, ...]
    data: Raw


@dataclass(frozen=True, slots=True)
class Predicted:
    """The outputs that one call asked for, in that order, and its share of the replica's CPU time in microseconds."""

    outputs: tuple[OutputTensor, ...]
    cpu_us: int


@dataclass(frozen=True, slots=True)
class PredictionFailed:
    """The model failed on this call, also when it ran alone, or its answer is too large. `reply_full`: neither, but the reply of its batch had
    no room for its answer; it is to be sent again."""

    message: str
    cpu_us: int
    reply_full: bool = False


Prediction = Predicted | PredictionFailed


def bytes_elements(raw: Raw) -> list[bytes]:
    """The elements of a BYTES tensor."""
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + 4
        at = start + length_at(raw, at)[0]
        found.append(bytes(raw[start:at]))
    return found
