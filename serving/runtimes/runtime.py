"""What every runtime can do: load a version, warm it up, answer a batch with a prediction per call, and close."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serving.inference import Prediction, RunInput


class LoadFailed(Exception):
    """The version cannot be served; `code` is what VersionFailed says."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Runtime(Protocol):
    """One loaded version."""

    def warm_up(self) -> None:
        """RunInput once on zeros, so that the first caller does not wait for what is done only once. Raises LoadFailed."""
        ...

    def predict(self, runs: Sequence[RunInput]) -> list[Prediction]:
        """One prediction per call, in order. When a run of several calls fails, each call is run alone (K16). Only outputs that were asked for are
        copied, and none of an answer that is too large or that the reply has no room for."""
        ...

    def close(self) -> None: ...


def split_by_weight(total: int, weights: Sequence[int]) -> list[int]:
    """A whole number split by weight; what rounding leaves goes to the first, so that the parts add up."""
    whole = sum(weights) or len(weights)
    parts = [total * (w or 1) // whole for w in weights]
    parts[0] += total - sum(parts)
    return parts
