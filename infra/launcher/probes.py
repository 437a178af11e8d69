"""Health of a part, and the replicas of models: one request over the network, with a short time-out; and how several are asked at once."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, assert_never, cast
from urllib.parse import urlsplit

import orjson

from events.process.settings import Settings
from infra.launcher.paths import StackPaths
from serving.serve_names import APPLIED_APP

ANSWER_S_MAX = 2.0
"""A healthy part answers in milliseconds; on a machine that is just starting everything, in a second."""
DOCUMENT_BYTES_MAX = 64 << 10
"""A health document is a few lines; what is longer is not one."""
SERVE_BYTES_MAX = 32 << 20
"""Serve tells some 2 KB of each replica: thousands of models."""


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


T = TypeVar("T")


class Asked(Generic[T]):
    """A question that is on its way in a thread of its own. An answer that comes too late is not waited for, not even at the exit."""

    def __init__(self, question: Callable[[], T]) -> None:
        self._answers: list[T] = []
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._ask, args=(question,), daemon=True)
        self._thread.start()

    def by(self, deadline: float, otherwise: T) -> T:
        """The answer; `otherwise` when it has not come by the deadline, in monotonic time. Raises what the question raised."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._failures:
            raise self._failures[0]
        return self._answers[0] if self._answers else otherwise

    def _ask(self, question: Callable[[], T]) -> None:
        try:
            self._answers.append(question())
        except BaseException as failure:
            self._failures.append(failure)


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


def accepting_gateways(settings: Settings) -> set[int]:
    """Ids of the gateway processes that accept calls, as their listener writes them down."""
    try:
        return set(orjson.loads(settings.gateway_state_file.read_bytes())["accepting"])
    except (OSError, orjson.JSONDecodeError):
        return set()


# --- replicas of models, as Ray Serve says over its REST interface


@dataclass(frozen=True)
class ModelReplicas:
    """`state` is Serve's word for the application, in lower case; `detail` its message while it is not running."""

    model: str
    version: str
    running: int
    wanted: int
    state: str
    detail: str

    @property
    def healthy(self) -> bool:
        """Calls are answered, or it is being brought up."""
        return self.running > 0 or self.wanted == 0 or self.state == "deploying"


def ask_serve(settings: Settings, paths: StackPaths) -> tuple[ModelReplicas, ...] | str:
    """Of every version that Serve was told to run, by name; or why it did not tell."""
    address = urlsplit(settings.ray_dashboard)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=ANSWER_S_MAX)
    try:
        headers = {"Authorization": f"Bearer {paths.ray_token.read_text().strip()}"}
        connection.request("GET", "/api/serve/applications/", headers=headers)
        answer = connection.getresponse()
        body = answer.read(SERVE_BYTES_MAX)
        return models_of(health_document(body)) if answer.status == 200 else f"Ray answers HTTP {answer.status}"
    except (OSError, http.client.HTTPException) as failure:
        return f"Ray does not answer: {failure or type(failure).__name__}"
    finally:
        connection.close()


def models_of(document: Mapping[str, Any]) -> tuple[ModelReplicas, ...]:
    """The applications of a Serve details document that are versions of models."""
    apps = cast("Mapping[str, Mapping[str, Any]]", document.get("applications") or {})
    return tuple(_replicas(name, app) for name, app in sorted(apps.items()) if name != APPLIED_APP)


def _replicas(name: str, app: Mapping[str, Any]) -> ModelReplicas:
    args = (app.get("deployed_app_config") or {}).get("args") or {}
    deployments = list((app.get("deployments") or {}).values())
    running = sum(replica.get("state") == "RUNNING" for d in deployments for replica in d.get("replicas", ()))
    wanted = sum(int(d.get("target_num_replicas") or 0) for d in deployments)
    trouble = [str(d["message"]) for d in deployments if d.get("message") and d.get("status") != "HEALTHY"]
    state, detail = str(app.get("status", "")).lower(), (trouble or [str(app.get("message") or "")])[0]
    if not deployments and state != "deleting":
        wanted = 1  # it was never built, so Serve knows no number yet; at least one was asked for
    return ModelReplicas(
        args.get("model", name), args.get("model_version", ""), running, wanted, state, "" if state == "running" else detail
    )
