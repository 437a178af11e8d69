"""How large an answer is, counted before its outputs are copied, and how much of a batch's reply each call may take.

A model's output may be as large as a value in its input says: eight bytes in, gigabytes out. A binary tensor counts as its bytes. A number
in JSON counts as the longest of its type, so whether an answer is too large depends on its shape alone, never on its values.
"""

from __future__ import annotations

from collections.abc import Iterable

from serving.inference import DTYPES

JSON_CHARS_MAX = {
    "BOOL": 6,
    "UINT8": 4,
    "UINT16": 6,
    "UINT32": 11,
    "UINT64": 21,
    "INT8": 5,
    "INT16": 7,
    "INT32": 12,
    "INT64": 21,
    "FP16": 17,
    "FP32": 17,
    "FP64": 25,
}
"""Of one number with its comma."""
ESCAPE_CHARS_MAX = 6
_UNESCAPED = bytes(b for b in range(256) if b >= 0x20 and b not in b'"\\')
LARGE_ANSWERS_PER_REPLY = 2
"""Answers of the largest size that one reply carries beside its small ones."""


def numbers_size(nbytes: int, datatype: str, as_binary: bool) -> int:
    """What a tensor of numbers takes in an answer."""
    dtype = DTYPES.get(datatype)
    return nbytes if as_binary or dtype is None else nbytes // dtype.itemsize * JSON_CHARS_MAX[datatype]


def texts_size(elements: Iterable[bytes], as_binary: bool) -> int:
    """What a BYTES tensor takes in an answer: with the length before each element, or with quotes, comma and escapes."""
    if as_binary:
        return sum(4 + len(e) for e in elements)
    return sum(3 + len(e) + (ESCAPE_CHARS_MAX - 1) * len(e.translate(None, _UNESCAPED)) for e in elements)


def too_large(size: int, bytes_max: int) -> str:
    """What a caller reads whose answer is too large."""
    remedy = "ask for fewer outputs, send fewer rows, or ask for binary tensors"
    return f"its answer would take {size} bytes and may take {bytes_max} (answer_bytes_max): {remedy}"


class ReplyRoom:
    """The bytes of one batch's reply. Each call has an equal share, which no other call can take; answers larger than that take turns in as
    many bytes again. So a large answer delays no small one (K28), and one that is alone always has room."""

    def __init__(self, calls: int, answer_bytes_max: int) -> None:
        self._left = LARGE_ANSWERS_PER_REPLY * answer_bytes_max
        self._share = self._left // max(1, calls)

    def take(self, size: int) -> bool:
        """False when there is no room for an answer of this size, of at most `answer_bytes_max`."""
        if size <= self._share:
            return True
        if size > self._left:
            return False
        self._left -= size
        return True
