"""The declared inputs and outputs of a model version: what calls are checked against and what a runtime loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tensor:
    """One declared input or output; -1 is a free dimension. `nan_allowed`: NaN and infinity are values of it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    nan_allowed: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """`stackable`: every first dimension is free, so the rows of several calls can be stacked for one run of the model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def stackable(self) -> bool:
        return all(t.shape and t.shape[0] == -1 for t in (*self.inputs, *self.outputs))


def interface_of(described: Mapping[str, Any]) -> Interface:
    """An interface of its JSON, as the controller hands it to a replica."""

    def tensors(specs: list[Mapping[str, Any]]) -> tuple[Tensor, ...]:
        return tuple(Tensor(s["name"], s["datatype"], tuple(s["shape"])) for s in specs)

    return Interface(tensors(described["inputs"]), tensors(described["outputs"]))
