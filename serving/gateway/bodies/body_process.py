"""Parses large bodies and writes large answers in a process of its own: what runs there, and the frames between it and the gateway.

`python -m serving.gateway.bodies.body_process MEMORY_BYTES CPU_S` serves the socket that is its standard input, one frame at a time, until the other
end is closed: also by the kernel, when the gateway dies. MEMORY_BYTES bounds its address space, CPU_S its CPU time for one frame. A frame is
two sizes, a head and bytes. The gateway's heads are pickled: it wrote them itself. Heads back are JSON, since this process reads what
strangers sent: if one of them took it over, nothing it answers is executed.
"""

from __future__ import annotations

import logging
import os
import pickle
import resource
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serving.inference import Inference, OutputTensor, Raw
from serving.model_interface import Interface
from serving.protocols.operations import InferenceFormat, ServedVersion
from serving.refused import Headers, Refused

logger = logging.getLogger(__name__)

FILES_MAX = 64
GIVES_WAY = 5
"""Below the gateway's priority: where the processors are full, its loop with everybody's small calls comes first."""
PREFIX = struct.Struct("<IQ")
"""The sizes of a frame's head and of its bytes."""
READY: dict[str, Any] = {"ready": True}
"""The head of the first frame back."""


@dataclass(frozen=True, slots=True)
class Served:
    """The version that answers, in plain values. Implements `ServedVersion`."""

    model: str
    version: str
    interface: Interface
    platform: str


# --- frames of the gateway


def parse_head(body_format: InferenceFormat, headers: dict[bytes, bytes], interface: Interface) -> bytes:
    """Asks for a body to be parsed: the bytes of the frame."""
    return pickle.dumps(("parse", body_format, headers, interface))


def render_head(body_format: InferenceFormat, served: ServedVersion, inference: Inference, outputs: Sequence[OutputTensor]) -> bytes:
    """Asks for an answer to be written: the outputs are the bytes of the frame. The tensors of the call stay here."""
    version = (served.model, served.version, served.interface, served.platform)
    call = (inference.id, inference.rows, inference.signature, inference.wanted)
    return pickle.dumps(("render", body_format, version, call, [(o.shape, len(o.data)) for o in outputs]))


# --- frames back


def inference_of(head: dict[str, Any], payload: bytes) -> Inference:
    """A parsed body. Raises Refused as the parser did; ValueError, KeyError and TypeError when the frame is none of ours."""
    _raise_refused(head)
    call_id, rows, signature, wanted, sizes = head["inference"]
    return Inference(
        str(call_id),
        int(rows),
        tuple(tuple(map(int, shape)) for shape in signature),
        tuple(_cut(payload, sizes)),
        tuple((int(index), bool(as_binary)) for index, as_binary in wanted),
    )


def rendered_of(head: dict[str, Any], payload: bytes) -> tuple[bytes, Headers]:
    """A written answer and the headers that describe it. Raises as `inference_of` does."""
    _raise_refused(head)
    return payload, _headers_of(head["rendered"])


def _raise_refused(head: dict[str, Any]) -> None:
    if "failed" in head:
        raise RuntimeError(f"in the process for large bodies: {head['failed']}")
    if "refused" in head:
        status, code, message, field, remedy, headers, more = head["refused"]
        raise Refused(int(status), str(code), str(message), str(field), str(remedy), headers=_headers_of(headers), **more)


def _headers_of(pairs: list[list[str]]) -> Headers:
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)


def _cut(payload: bytes, sizes: Sequence[int]) -> list[memoryview]:
    view, parts, at = memoryview(payload), list[memoryview](), 0
    for size in sizes:
        if not 0 <= size <= len(view) - at:
            raise ValueError("the sizes do not fit the bytes")
        parts.append(view[at : at + size])
        at += size
    if at != len(view):
        raise ValueError("bytes are left over")
    return parts


# --- what runs in the process of its own


def main(memory_bytes: int, cpu_s: float) -> None:
    _confine(memory_bytes)
    logging.basicConfig(level=logging.INFO)
    with socket.socket(fileno=sys.stdin.fileno()) as gateway:
        _send(gateway, READY, ())
        while (frame := _receive(gateway)) is not None:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)  # past it SIGPROF ends the process, whatever code it is in
            _send(gateway, *_answer(*frame))
            signal.setitimer(signal.ITIMER_PROF, 0)


def _confine(memory_bytes: int) -> None:
    os.nice(GIVES_WAY)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MAX, FILES_MAX))
    for nothing in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(nothing, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group: the gateway drains its calls, then closes the socket


def _answer(head: bytes, payload: bytes) -> tuple[dict[str, Any], Sequence[Raw]]:
    try:
        task, body_format, *asked = pickle.loads(head)
        return (_parsed if task == "parse" else _rendered)(body_format, payload, *asked)
    except Refused as e:
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in e.headers]
        return {"refused": (e.status, e.code, e.message, e.field, e.remedy, pairs, e.more)}, ()
    except MemoryError:
        return {"refused": (*_complex("memory"), (), {})}, ()
    except Exception as e:
        logger.exception("a large body")
        return {"failed": f"{type(e).__name__}: {e}"[:300]}, ()


def _parsed(
    body_format: InferenceFormat, body: bytes, headers: dict[bytes, bytes], interface: Interface
) -> tuple[dict[str, Any], Sequence[Raw]]:
    found = body_format.parse(headers, body, interface)
    return {"inference": (found.id, found.rows, found.signature, found.wanted, [len(t) for t in found.tensors])}, found.tensors


def _rendered(
    body_format: InferenceFormat,
    payload: bytes,
    version: tuple[str, str, Interface, str],
    call: tuple[str, int, tuple[tuple[int, ...], ...], tuple[tuple[int, bool], ...]],
    described: list[tuple[tuple[int, ...], int]],
) -> tuple[dict[str, Any], Sequence[Raw]]:
    call_id, rows, signature, wanted = call
    data = _cut(payload, [size for _, size in described])
    outputs = tuple(OutputTensor(shape, raw) for (shape, _), raw in zip(described, data, strict=True))
    body, headers = body_format.render(Served(*version), Inference(call_id, rows, signature, (), wanted), outputs)
    return {"rendered": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]}, (body,)


def too_complex(what: str) -> Refused:
    """The item took more time, or more memory, than one may. 422 and not 413: it is what the bytes hold, not how many they are."""
    return Refused(*_complex(what))


def _complex(what: str) -> tuple[int, str, str, str, str]:
    message = f"it needs more {what} than the gateway gives one call"
    return 422, "body_too_complex", message, "", "send fewer rows at a time, or numbers as binary tensors"


def _receive(gateway: socket.socket) -> tuple[bytes, bytes] | None:
    """The next frame; None when the other end is closed."""
    prefix = gateway.recv(PREFIX.size, socket.MSG_WAITALL)
    if len(prefix) < PREFIX.size:
        return None
    sizes = PREFIX.unpack(prefix)
    head, payload = (gateway.recv(size, socket.MSG_WAITALL) if size else b"" for size in sizes)
    return (head, payload) if (len(head), len(payload)) == sizes else None


def _send(gateway: socket.socket, head: dict[str, Any], payload: Sequence[Raw]) -> None:
    written = orjson.dumps(head)
    gateway.sendall(PREFIX.pack(len(written), sum(map(len, payload))) + written)
    for part in payload:
        gateway.sendall(part)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
