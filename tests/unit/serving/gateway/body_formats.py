"""A format whose bodies are orders: what a body can do to the process that parses it. That process imports this module."""

from __future__ import annotations

import os
import time
from pathlib import Path

from serving.inference import Inference, OutputTensor
from serving.model_interface import Interface
from serving.protocols.open_inference.operations import OpenInference
from serving.protocols.operations import ServedVersion
from serving.refused import Headers, Refused


class Obeys:
    """Implements `InferenceFormat`."""

    def parse(self, headers: dict[bytes, bytes], body: bytes, interface: Interface) -> Inference:
        match body.split():
            case [b"sleep", seconds]:
                time.sleep(float(seconds))
            case [b"spin"]:
                while True:
                    pass
            case [b"end"]:
                os._exit(7)
            case [b"memory"]:
                len(bytearray(1 << 40))
            case [b"mistake"]:
                raise KeyError("a mistake of ours")
            case [b"variables"]:
                return Inference("", 0, (), (Path("/proc/self/environ").read_bytes(),), ())
            case _:
                raise Refused(409, "odd", "message", "field", "remedy", headers=((b"retry-after", b"7"),), successor="other")
        return Inference(body.decode(), 0, (), (), ())

    def text_bytes(self, headers: dict[bytes, bytes], size: int, interface: Interface) -> int:
        return size

    def render(self, served: ServedVersion, inference: Inference, outputs: tuple[OutputTensor, ...]) -> tuple[bytes, Headers]:
        return self.parse({}, inference.id.encode(), served.interface).id.encode(), ()


class ObeysAtTheAnswer(OpenInference):
    """What it obeys is the id of the call."""

    def render(self, served: ServedVersion, inference: Inference, outputs: tuple[OutputTensor, ...]) -> tuple[bytes, Headers]:
        return OBEYS.render(served, inference, outputs)


OBEYS, OBEYS_AT_THE_ANSWER = Obeys(), ObeysAtTheAnswer()
