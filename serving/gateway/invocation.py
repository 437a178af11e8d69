"""One call from body to receipt: routed, checked, executed, metered, acknowledged, answered; in this order (K12).

Every execution has its own settled fact, also those that failed; the caller gets an answer only after the fact of the
execution that made it is durable. Whether it is billed is for `rating/` to say.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from events.log.client import LogBroken, LogUnavailable
from events.log.record import Coordinate
from events.process.clock import now_us
from events.process.ids import new_id
from serving.gateway.batching import Landed, ReplicaLost
from serving.gateway.routes import Key, Model, Version, pick
from serving.inference import Inference, Predicted, PredictionFailed
from serving.metering.meter import Entry, NotAcknowledged
from serving.protocols.open_inference.tensors import parse, render
from serving.refused import Headers, Refused, later

if TYPE_CHECKING:
    from serving.gateway.state import Edge

ATTEMPTS_MAX = 2
"""An inference has no effects, so one that lost its replica is sent to another once; a second loss is likely its own doing."""
OPERATION = "infer"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """An authenticated inference request."""

    key: Key
    model: Model
    pinned: str | None
    addressed: str
    """The model as the caller named it."""
    body: bytes
    header_length: int | None
    idempotency: bytes
    began_us: int
    gone: Callable[[], bool] = lambda: False
    """Whether the caller has gone away meanwhile."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How an execution ended, in the words of its fact."""

    outcome: str
    status: int
    error_code: str = ""
    bytes_out: int = 0
    landed: Landed | None = None


async def invoke(edge: Edge, call: Call) -> Answer:
    """The answer, receipt included. Raises Refused."""
    version, route = choose(edge, call)
    if edge.meter.away:
        raise later("log_away", "usage cannot be recorded now, so nothing is executed")
    inference = parse(call.body, call.header_length, version.interface)
    execution = Execution(edge, call, version, route, inference)
    landed = await execution.run()
    match landed.result:
        case PredictionFailed(message):
            execution.settle(Ended("failed", 422, "inference_failed", landed=landed))
            raise Refused(
                422,
                "inference_failed",
                f"the model did not take this input: {message}",
                "inputs",
                "check the values against what it was made for",
            )
        case Predicted() if call.gone():
            execution.settle(Ended("aborted", 499, "caller_gone", landed=landed))
            raise Refused(
                499, "caller_gone", "the caller went away before the answer was there", "", "call again with the same Idempotency-Key"
            )
        case Predicted(outputs):
            body, head_length = render(call.model.model, version.version, inference, outputs, version.interface)
            entry = execution.settle(Ended("succeeded", 200, bytes_out=len(body), landed=landed))
            return Answer(200, await execution.receipt(entry, head_length), body)
        case _:
            assert_never(landed.result)


def choose(edge: Edge, call: Call) -> tuple[Version, str]:
    """The version that takes this call, and why: the word on the fact."""
    if call.pinned is not None:
        return servable(call.model, call.pinned, canary=True), "pinned"
    route = call.model.route  # read once: the fold replaces it at any time, in a thread of its own
    trusted = edge.fresh
    weights = route.weights if trusted else route.steady
    if call.model.retired is not None or not weights:
        # Retired, not deployed, not loaded: each with its own reason; or loaded in this very moment.
        return servable(call.model, None, canary=trusted), "live:100"
    call.model.calls += 1
    name = pick(weights, call.model.calls)
    share = dict(weights)[name]
    kind = "canary" if name == route.canary else "live" if trusted else "steady"
    return call.model.versions[name], f"{kind}:{share}"


def servable(model: Model, pinned: str | None, *, canary: bool) -> Version:
    """The version a name stands for. Raises 410 with the successor, 404, or 503 while it loads."""
    if model.retired is not None:
        successor = model.retired.successor
        remedy = f"call {successor}" if successor else "GET /v1/models lists what can be called"
        raise Refused(410, "model_retired", f"{model.model} was retired: {model.retired.reason}", "model", remedy, successor=successor)
    if pinned is None:
        weights = model.route.weights if canary else model.route.steady
        if weights:
            return model.versions[weights[0][0]]
        if model.live is None:
            raise Refused(
                404, "not_deployed", f"no version of {model.model} is deployed", "model", "GET /v1/models lists what can be called"
            )
        pinned = model.live
    version = model.versions.get(pinned)
    if version is None or not version.deployed:
        raise Refused(
            404,
            "version_not_deployed",
            f"version {pinned[:80]} of {model.model} is not deployed",
            "version",
            "GET the model's metadata for its versions",
        )
    if not version.ready:
        why = f": {version.failure[1]}" if version.failure else ""
        raise later("version_not_ready", f"version {pinned} of {model.model} is not loaded{why[:200]}", 2)
    return version


class Execution:
    """One call on its way through replicas: each attempt leaves a fact."""

    def __init__(self, edge: Edge, call: Call, version: Version, route: str, inference: Inference) -> None:
        self._edge, self._call, self._version, self._route, self._inference = edge, call, version, route, inference
        self._event_id = new_id()
        self._attempt = 1

    async def run(self) -> Landed:
        """What came back. A lost replica costs one more attempt, alone (K16)."""
        spec = self._version.spec or {}
        lane, loop = self._edge.lane(self._version), asyncio.get_running_loop()
        until = loop.time() + spec.get("timeout_us", 10_000_000) / 1e6
        while True:
            landing = lane.board(self._inference, alone=self._attempt > 1)
            late = loop.call_at(until, _expire, landing)
            try:
                return await landing
            except ReplicaLost as e:
                self.settle(Ended("failed", 503, "replica_lost"))
                if self._attempt >= ATTEMPTS_MAX:
                    raise later("replica_lost", f"the model's replica was lost, {ATTEMPTS_MAX} times: {str(e)[:200]}", 2) from e
                self._event_id, self._attempt = new_id(), self._attempt + 1
            except TimeoutError:
                self.settle(Ended("timed_out", 504, "timed_out"))
                remedy = "send fewer rows, or ask for a longer time-out of the deployment"
                raise Refused(504, "timed_out", "the model did not answer in time", "", remedy) from None
            finally:
                late.cancel()

    def settle(self, ended: Ended) -> Entry:
        call, key, landed = self._call, self._call.key, ended.landed
        body: dict[str, Any] = {
            "correlation_id": self._inference.id,
            "invocation_key": self._invocation_key(),
            "sub_account": key.sub_account,
            "department": key.department,
            "team": key.team,
            "project": key.project,
            "key_id": key.key_id,
            "user": key.user,
            "region": self._edge.settings.region,
            "labels": key.labels,
            "provider": self._version.provider,
            "model": call.model.model,
            "model_version": self._version.version,
            "deployment": self._version.address,
            "replica": landed.replica if landed else "",
            "route": self._route,
            "operation": OPERATION,
            "attempt": self._attempt,
            "outcome": ended.outcome,
            "status": ended.status,
            "error_code": ended.error_code,
            "bytes_in": len(call.body),
            "bytes_out": ended.bytes_out,
            "cpu_us": landed.result.cpu_us if landed else 0,
            "queue_us": landed.queue_us if landed else 0,
            "latency_us": max(0, now_us() - call.began_us),
            "batch_size": landed.batch_size if landed else 1,
        }
        try:
            return self._edge.meter.settle(key.tenant, self._event_id, body)
        except (LogUnavailable, LogBroken) as e:
            raise later("log_away", "usage cannot be recorded now, so there is no answer") from e

    async def receipt(self, entry: Entry, head_length: int | None) -> Headers:
        """The headers of a durable answer. Raises 503, and voids the fact, when the log did not take it in time."""
        try:
            at: Coordinate = await self._edge.meter.acknowledged(entry)
        except NotAcknowledged as e:
            self._edge.meter.void(entry, "not_acknowledged")
            raise later("not_acknowledged", "usage was not recorded in time, so there is no answer; what is recorded late is voided") from e
        headers = (
            (b"modelmarket-receipt", str(at).encode()),
            (b"modelmarket-event-id", entry.event_id.encode()),
            (b"modelmarket-sha256", entry.sha256.hex().encode()),
            (b"modelmarket-epoch", self._edge.meter.identity.epoch.encode()),
            (b"modelmarket-sequence", str(entry.sequence).encode()),
            (b"modelmarket-log", self._edge.meter.identity.log_id.encode()),
            (b"modelmarket-model-version", self._version.version.encode()),
        )
        if head_length is None:
            return (b"content-type", b"application/json"), *headers
        return (b"content-type", b"application/octet-stream"), (b"inference-header-content-length", str(head_length).encode()), *headers

    def _invocation_key(self) -> bytes:
        """SHA-256 over tenant, Idempotency-Key, operation and body (K11), each after its length; empty without a key."""
        call = self._call
        if not call.idempotency:
            return b""
        digest = hashlib.sha256()
        for part in (call.key.tenant.encode(), call.idempotency, f"{OPERATION} {call.addressed}".encode(), call.body):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()


def _expire(landing: asyncio.Future[Landed]) -> None:
    if not landing.done():
        landing.set_exception(TimeoutError())
