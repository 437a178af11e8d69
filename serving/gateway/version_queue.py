"""The queue of one version: calls that arrive while others are under way are sent together, one Ray call for many requests.

While fewer batches are under way than allowed, a call is dispatched at once; while all are, calls wait and are dispatched as one
batch, those of each tenant in turn (K28). So batches grow with the load, and a call without neighbours never waits for some. A batch
shares no fate (K16): each call has its own result (`batch_codec`), and an input that may have killed its replica is dispatched in isolation.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from contextvars import Context
from dataclasses import dataclass

from events.process.fairness.fair_queue import FairQueue, QueueFull
from serving.inference import Inference, Prediction
from serving.refused import Refused
from serving.replicas.batch_codec import pack, unpack_reply
from serving.replicas.model_replicas import ModelReplicas, NoReplica, ReplicaLost

logger = logging.getLogger(__name__)

QUEUE_CALLS_MAX = 4096
"""Calls waiting for one version; past it the caller gets 429, since it would wait longer than its time-out."""
QUEUE_BYTES_MAX = 256 << 20
"""Tensors waiting for one version: four thousand large calls would take the memory of the whole node."""
BATCH_BYTES_MAX = 4 << 20
"""Tensors in one Ray call: larger ones would block the event loop that copies them."""
BATCHES_PER_REPLICA = 2
"""One being computed, one being carried."""
SUSPECT_S, SUSPECTS_MAX = 300.0, 1000
"""How long an input is remembered that was alone with a replica when that was lost, and how many."""
LOSSES_MAX = 2
"""After so many lost replicas the input is refused: one may be chance."""


@dataclass(slots=True, eq=False)
class QueuedCall:
    inference: Inference
    isolated: bool
    queued_at_ns: int
    future: asyncio.Future[CallResult]


@dataclass(frozen=True, slots=True)
class CallResult:
    """What became of one call, how many calls its batch had, and how long it waited."""

    prediction: Prediction
    replica: str
    batch_size: int
    queue_us: int


class VersionQueue:
    """The calls of one version; of one event loop. `timeout_s` bounds a batch."""

    def __init__(self, address: str, replicas: ModelReplicas, *, batch_max: int, batches_max: int, timeout_s: float) -> None:
        self._address, self._replicas = address, replicas
        self._batch_max, self._batches_max, self.timeout_s = batch_max, batches_max, timeout_s
        self._waiting = FairQueue[QueuedCall](QUEUE_CALLS_MAX, QUEUE_BYTES_MAX)
        self._batches: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._context = Context()  # empty: Serve finds tasks by their context, and one caller's disconnect must not cancel the batch
        self._dispatch_scheduled = False
        self._isolating = False
        """The one batch under way is an isolated call."""
        self._suspects = SuspectInputs()

    def enqueue(self, tenant: str, inference: Inference, *, isolated: bool = False) -> asyncio.Future[CallResult]:
        """The future of the result of a tenant's call. `isolated`: no other batch shares the replicas meanwhile. So is a call sent whose batch lost its
        replica, and an input that was alone with a replica when that was lost; when that happens again the input is refused (K16)."""
        losses = self._suspects.losses(inference) if self._suspects else 0
        if losses >= LOSSES_MAX:
            remedy = "check the values against what the model was made for; the provider can see its replica's end in Ray's logs"
            raise Refused(422, "replica_lost_by_input", f"{losses} replicas were lost while they had this input alone", "inputs", remedy)
        queued = QueuedCall(inference, isolated or losses > 0, time.monotonic_ns(), self._loop.create_future())
        try:
            self._waiting.put(tenant, queued, inference.size)
        except QueueFull as full:
            message = f"{self._address} has no room for another of your calls: {full.items} with {full.bytes} bytes wait already"
            raise Refused(429, "overloaded", message, "", "slow down, then retry", headers=((b"retry-after", b"1"),)) from None
        if not self._dispatch_scheduled and len(self._batches) < self._batches_max:
            self._dispatch_scheduled = True
            self._loop.call_soon(self._dispatch, context=self._context)  # not now: calls of the same turn of the loop join the batch
        return queued.future

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._batches

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        while self._waiting and len(self._batches) < self._batches_max and not self._isolating:
            if self._waiting.first().isolated and self._batches:
                break  # alone with the replica, not only in its batch: else it is not plain which input the replica was lost by
            batch = self._next_batch()
            if batch:
                self._isolating = batch[0].isolated
                task = self._loop.create_task(self._send(batch), context=self._context)
                self._batches.add(task)
                task.add_done_callback(self._batch_ended, context=self._context)

    def _next_batch(self) -> list[QueuedCall]:
        batch: list[QueuedCall] = []
        size = rows = 0
        while self._waiting and rows < self._batch_max and size < BATCH_BYTES_MAX:
            if batch and self._waiting.first().isolated:
                break
            queued = self._waiting.take()
            if queued.future.done():  # its caller's time-out has passed
                continue
            batch.append(queued)
            size += queued.inference.size
            rows += max(1, queued.inference.rows)
            if queued.isolated:
                break
        return batch

    async def _send(self, batch: list[QueuedCall]) -> None:
        sent_at_ns = time.monotonic_ns()
        blob, order = pack([queued.inference for queued in batch])
        try:
            reply = unpack_reply(await asyncio.wait_for(self._replicas.call(self._address, blob), self.timeout_s))
            if len(reply.predictions) != len(batch):
                raise ValueError(f"{len(reply.predictions)} predictions for {len(batch)} calls")
        except TimeoutError:
            return  # each call has its own timer
        except (Exception, asyncio.CancelledError) as e:  # whatever it was, no caller may be left waiting for it
            if not isinstance(e, ReplicaLost | NoReplica):
                logger.exception("a batch for %s failed", self._address)
            elif batch[0].isolated and isinstance(e, ReplicaLost):
                self._suspects.add(batch[0].inference)
            for queued in batch:
                if not queued.future.done():
                    queued.future.set_exception(NoReplica(str(e)) if isinstance(e, NoReplica) else ReplicaLost(str(e)))
            return
        for index, prediction in zip(order, reply.predictions, strict=True):
            queued = batch[index]
            if not queued.future.done():
                queued.future.set_result(CallResult(prediction, reply.replica, len(batch), (sent_at_ns - queued.queued_at_ns) // 1000))

    def _batch_ended(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._isolating = self._isolating and bool(self._batches)
        self._dispatch()


class SuspectInputs:
    """Inputs that were alone with a replica when that was lost, for a while."""

    def __init__(self) -> None:
        self._losses: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """Digest of an input → how many replicas were lost, and when the last."""

    def __bool__(self) -> bool:
        return bool(self._losses)

    def add(self, inference: Inference) -> None:
        digest = _digest(inference)
        self._losses[digest] = (self.losses(inference) + 1, time.monotonic())
        self._losses.move_to_end(digest)
        while len(self._losses) > SUSPECTS_MAX:
            self._losses.popitem(last=False)

    def losses(self, inference: Inference) -> int:
        losses, last_at = self._losses.get(_digest(inference), (0, 0.0))
        return losses if time.monotonic() - last_at < SUSPECT_S else 0


def _digest(inference: Inference) -> bytes:
    digest = hashlib.sha256(repr(inference.signature).encode())
    for tensor in inference.tensors:
        digest.update(tensor)
    return digest.digest()
