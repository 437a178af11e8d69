"""Health of a part: one request over the network, with a short time-out."""

from __future__ import annotations

import http.client
import socket
import struct
from dataclasses import dataclass
from typing import assert_never, cast
from urllib.parse import urlsplit

import orjson

ANSWER_S_MAX = 2.0
"""A healthy part answers in milliseconds; on a machine that is just starting everything, in a second."""
DOCUMENT_BYTES_MAX = 64 << 10
"""A health document is a few lines; what is longer is not one."""


@dataclass(frozen=True)
class HttpProbe:
    """Healthy when GET answers 200; a JSON body may carry the lag and a reason."""

    url: str


@dataclass(frozen=True)
class KafkaProbe:
    """Healthy when the broker answers ApiVersions: a bound port alone only means that the JVM has started."""

    host: str
    port: int


@dataclass(frozen=True)
class ExitProbe:
    """A part that runs once: healthy when it has ended with 0."""


Probe = HttpProbe | KafkaProbe | ExitProbe


@dataclass(frozen=True)
class Health:
    ok: bool
    detail: str = ""
    lag: int | None = None


def check(probe: Probe) -> Health:
    match probe:
        case HttpProbe():
            return check_http(probe)
        case KafkaProbe():
            return check_kafka(probe)
        case ExitProbe():
            return Health(ok=True)
        case _:
            assert_never(probe)


def check_http(probe: HttpProbe) -> Health:
    """With the plain client of the standard library: a start asks a few hundred times, on processors that are busy starting."""
    address = urlsplit(probe.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=ANSWER_S_MAX)
    try:
        connection.request("GET", address.path)
        answer = connection.getresponse()
        document = health_document(answer.read(DOCUMENT_BYTES_MAX))
    except (OSError, http.client.HTTPException) as failure:
        return Health(ok=False, detail=f"no answer: {failure or type(failure).__name__}")
    finally:
        connection.close()
    lag = document.get("lag")
    ok = answer.status == 200
    reason = str(document.get("detail") or document.get("message") or "")
    detail = reason if ok else f"HTTP {answer.status} {reason or document.get('status') or ''}".strip()
    return Health(ok=ok, detail=detail, lag=lag if isinstance(lag, int) else None)


def health_document(body: bytes) -> dict[str, object]:
    """The health document of one of our parts; other parts answer what they like."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, object]", document) if isinstance(document, dict) else {}


def check_kafka(probe: KafkaProbe) -> Health:
    client = b"modelmarket"
    request = struct.pack(">hhih", 18, 0, 1, len(client)) + client  # ApiVersions v0, correlation id 1
    try:
        with socket.create_connection((probe.host, probe.port), timeout=ANSWER_S_MAX) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(10)
    except OSError as failure:
        return Health(ok=False, detail=f"no answer: {failure}")
    return Health(ok=len(answer) == 10 and answer[8:] == b"\0\0", detail="" if answer else "the broker closed the connection")
