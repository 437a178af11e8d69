"""One call on its way through replicas: each attempt leaves a usage fact, and the last one's fact is the caller's receipt.

Every execution has its own settled fact, also those that failed; the caller gets an answer only after the fact of the execution
that made it is durable (K12). Whether it is billed is for `rating` to say.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Any

from access.principal import Principal
from events.log.client import LogBroken, LogUnavailable
from events.log.record import Coordinate
from events.process.clock import now_us
from events.process.ids import new_id
from serving.gateway.request import Request
from serving.gateway.served_models import Model, Version
from serving.gateway.state import GatewayState
from serving.gateway.version_queue import CallResult
from serving.inference import Inference, PredictionFailed
from serving.metering.meter import NotAcknowledged, PendingFact
from serving.refused import Headers, Refused, unavailable
from serving.replicas.model_replicas import NoReplica, ReplicaLost

ATTEMPTS_MAX = 2
"""An inference has no effects, so one that lost its replica is sent to another once; a second loss is likely its own doing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution ended, in the words of its fact."""

    outcome: str
    status: int
    error_code: str = ""
    bytes_out: int = 0
    result: CallResult | None = None


class Execution:
    """`request` has passed identification and routing: its caller and model are known."""

    def __init__(self, state: GatewayState, request: Request, version: Version, route: str, inference: Inference) -> None:
        assert request.caller is not None and request.model is not None
        self._caller: Principal = request.caller
        self._model: Model = request.model
        self._state, self._request, self._version, self._route, self._inference = state, request, version, route, inference
        self._event_id = new_id()
        self._attempt = 1

    async def run(self) -> CallResult:
        """What came back. A lost replica costs one more attempt, in a batch of its own (K16). A call without room in its batch's reply is sent
        again until its time is over, and each such run is a failed execution with its fact. Raises Refused: 503, 504."""
        queue, loop, losses = self._state.queue(self._version), asyncio.get_running_loop(), 0
        until = loop.time() + self._version.spec.timeout_us / 1e6
        while True:
            queued = queue.enqueue(self._caller.tenant, self._inference, isolated=losses > 0)
            timer = loop.call_at(until, _expire, queued)
            try:
                result = await queued
                if not (isinstance(result.prediction, PredictionFailed) and result.prediction.reply_full):
                    return result
                self.record(Outcome("failed", 503, "reply_full", result=result))
            except ReplicaLost as e:
                self.record(Outcome("failed", 503, "replica_lost"))
                losses += 1
                if losses >= ATTEMPTS_MAX:
                    raise unavailable("replica_lost", f"the model's replica was lost, {ATTEMPTS_MAX} times: {str(e)[:200]}", 2) from e
            except NoReplica as e:
                raise unavailable("no_replica", f"no replica of the model runs now: {str(e)[:200]}", 2) from e
            except TimeoutError:
                self.record(Outcome("timed_out", 504, "timed_out"))
                remedy = "send fewer rows, or ask for a longer time-out of the deployment"
                raise Refused(504, "timed_out", "the model did not answer in time", "", remedy) from None
            finally:
                timer.cancel()
            self._event_id, self._attempt = new_id(), self._attempt + 1

    def record(self, ended: Outcome) -> PendingFact:
        """Writes the usage fact of this attempt. Raises Refused (503) when the log cannot take it; nothing was written then."""
        request, caller, result = self._request, self._caller, ended.result
        body: dict[str, Any] = {
            "correlation_id": self._inference.id,
            "invocation_key": self._invocation_key(),
            **caller.dimensions,
            "key_id": caller.key_id,
            "user": caller.user,
            "region": self._state.settings.region,
            "labels": caller.labels,
            "provider": self._version.provider,
            "model": self._model.model,
            "model_version": self._version.version,
            "deployment": self._version.address,
            "replica": result.replica if result else "",
            "route": self._route,
            "operation": request.operation,
            "attempt": self._attempt,
            "outcome": ended.outcome,
            "status": ended.status,
            "error_code": ended.error_code,
            "bytes_in": len(request.body),
            "bytes_out": ended.bytes_out,
            "cpu_us": result.prediction.cpu_us if result else 0,
            "queue_us": result.queue_us if result else 0,
            "latency_us": max(0, now_us() - request.began_us),
            "batch_size": result.batch_size if result else 1,
        }
        try:
            return self._state.meter.record_settled(caller.tenant, self._event_id, body)
        except (LogUnavailable, LogBroken) as e:
            raise unavailable("log_unavailable", "usage cannot be recorded now, so there is no answer") from e

    async def receipt(self, fact: PendingFact) -> Headers:
        """Where the fact stands, once the log has it. Raises Refused (503), and voids the fact, when the log did not take it in time."""
        meter = self._state.meter
        try:
            at: Coordinate = await meter.acknowledged(fact)
        except NotAcknowledged as e:
            meter.void(fact, "not_acknowledged")
            message = "usage was not recorded in time, so there is no answer; what is recorded late is voided"
            raise unavailable("not_acknowledged", message) from e
        return (
            (b"modelmarket-receipt", str(at).encode()),
            (b"modelmarket-event-id", fact.event_id.encode()),
            (b"modelmarket-sha256", fact.sha256.hex().encode()),
            (b"modelmarket-epoch", meter.epoch.epoch_id.encode()),
            (b"modelmarket-sequence", str(fact.sequence).encode()),
            (b"modelmarket-log", meter.epoch.log_id.encode()),
            (b"modelmarket-model-version", self._version.version.encode()),
        )

    def _invocation_key(self) -> bytes:
        """SHA-256 over tenant, Idempotency-Key, operation and body (K11), each after its length; empty without a key."""
        request = self._request
        if not request.idempotency_key:
            return b""
        digest = hashlib.sha256()
        addressed = f"{request.operation} {request.addressed}".encode()
        for part in (self._caller.tenant.encode(), request.idempotency_key, addressed, request.body):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()


def _expire(queued: asyncio.Future[CallResult]) -> None:
    if not queued.done():
        queued.set_exception(TimeoutError())
