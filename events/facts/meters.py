"""Every meter: what an execution uses and a price book may price. The one list; table, views, rating and request bodies are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from events.facts.fact import Count, NestedRecord


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter counts, and a quantity that no bill reaches: quantity × price must be an amount that a fact can hold."""

    meaning: str
    quantity_max: int
    measured: bool = True
    """Whether the programs of this commit measure it. What is not cannot be priced: it would be billed as 0."""


_TOKENS_MAX, _SIZE_MAX, _PIECES_MAX = 10**14, 10**16, 10**9


class MeterReadings(NestedRecord):
    """One field per meter, in the order in which rating keeps quantities. A new meter has the default 0: no old record used it."""

    calls: Annotated[Count, Reading("calls", _PIECES_MAX)] = 1
    input_tokens: Annotated[Count, Reading("input tokens", _TOKENS_MAX)] = 0
    output_tokens: Annotated[Count, Reading("output tokens", _TOKENS_MAX)] = 0
    cached_tokens: Annotated[Count, Reading("input tokens that the model had cached", _TOKENS_MAX)] = 0
    reasoning_tokens: Annotated[Count, Reading("reasoning tokens", _TOKENS_MAX)] = 0
    bytes_in: Annotated[Count, Reading("bytes of the request", _SIZE_MAX)] = 0
    bytes_out: Annotated[Count, Reading("bytes of the answer", _SIZE_MAX)] = 0
    images: Annotated[Count, Reading("images", _PIECES_MAX)] = 0
    media_us: Annotated[Count, Reading("length of audio or video, microseconds", _SIZE_MAX)] = 0
    gpu_us: Annotated[Count, Reading("GPU time, microseconds", _SIZE_MAX, measured=False)] = 0
    cpu_us: Annotated[Count, Reading("CPU time, microseconds", _SIZE_MAX)] = 0


METERS: tuple[str, ...] = tuple(MeterReadings.model_fields)
READINGS: Mapping[str, Reading] = {
    name: next(m for m in info.metadata if isinstance(m, Reading)) for name, info in MeterReadings.model_fields.items()
}

if TYPE_CHECKING:
    Meter = str
else:
    Meter = Literal[METERS]
"""The name of a meter. A type checker cannot read a computed list of words: it sees a string, and pydantic checks the word."""
