"""What a protocol can ask of the gateway: one small type per operation, and how a protocol reads and writes an inference.

A protocol maps paths to these operations and knows its own documents. Who may call, where a call goes, how it is executed and
metered is the same for all protocols: `serving.gateway.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.inference import Inference, OutputTensor
from serving.model_interface import Interface
from serving.refused import Headers


class InferenceFormat(Protocol):
    """The bodies of one protocol's inference."""

    def parse(self, headers: dict[bytes, bytes], body: bytes, interface: Interface) -> Inference:
        """A request body, checked against the interface. Raises Refused with the field at fault."""
        ...

    def text_bytes(self, headers: dict[bytes, bytes], size: int, interface: Interface) -> int:
        """How many of a body's `size` bytes `parse` reads one by one; the others are numbers, checked all at once. Raises Refused."""
        ...

    def render(self, served: ServedVersion, inference: Inference, outputs: tuple[OutputTensor, ...]) -> tuple[bytes, Headers]:
        """The answer's body and the headers that describe it. The tensors of the inference may be missing."""
        ...


class ServedVersion(Protocol):
    """The version that answers, as a protocol may name it."""

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def interface(self) -> Interface: ...
    @property
    def platform(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ListedModel:
    """What of a model in a list never changes."""

    model: str
    provider: str
    registered_at_s: int


@dataclass(frozen=True, slots=True)
class Infer:
    """POST: one inference. `model` as the caller named it; `version` when the path pins one."""

    model: str
    version: str | None
    format: InferenceFormat


@dataclass(frozen=True, slots=True)
class DescribeVersion:
    """GET: a document about a version that takes calls. `name` is the operation as refusals are counted."""

    name: str
    model: str
    version: str | None
    render: Callable[[ServedVersion, Sequence[str]], bytes]
    """Gets the version, and the names of the versions that can be called."""


@dataclass(frozen=True, slots=True)
class ListModels:
    """GET: what the caller may call. The list is long, so it is written in parts, and the part of a model once."""

    part: Callable[[ListedModel], bytes]
    entry: Callable[[bytes, bytes | None], bytes]
    """Gets the part of a model, and its prices as JSON; None when nothing is priced."""
    document: Callable[[Sequence[bytes]], bytes]
    """Gets the entries."""


@dataclass(frozen=True, slots=True)
class CheckReady:
    """GET: 200 while the gateway takes calls, else 503."""

    body: bytes


@dataclass(frozen=True, slots=True)
class ShowDocument:
    """GET: a fixed document."""

    body: bytes


Operation = Infer | DescribeVersion | ListModels | CheckReady | ShowDocument
