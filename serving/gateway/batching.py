"""Calls that arrive while others are under way travel together: one Ray call for many requests, and no waiting for company.

A call that finds a free flight leaves at once; while all flights are in the air the rest collect, and leave as one. So batches
grow with the load and a lone caller never waits. What one call does to a replica is not shared: see `batch_codec` and K16.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from contextvars import Context
from dataclasses import dataclass
from typing import Protocol

from serving.inference import Inference, Prediction
from serving.refused import Refused
from serving.replicas.batch_codec import pack, unpack_reply

logger = logging.getLogger(__name__)

QUEUE_CALLS_MAX = 4096
"""Calls waiting for one version; past it the caller is told 429, since it would wait longer than its time-out."""
QUEUE_BYTES_MAX = 256 << 20
"""Tensors waiting for one version: four thousand large calls would take the memory of the whole node."""
FLIGHT_BYTES_MAX = 16 << 20
"""Tensors in one Ray call: larger ones would block the event loop that copies them."""
FLIGHTS_PER_REPLICA = 2
"""One being computed, one being carried."""
SUSPECT_S, SUSPECTS_MAX = 300.0, 1000
"""How long an input that was alone with a replica when that was lost is remembered, and how many."""
LOSSES_MAX = 2
"""After so many it is refused: once may be chance."""


class ReplicaLost(Exception):
    """The replica that had these calls is gone or cannot be reached; whether it ran them is not known."""


class Replicas(Protocol):
    """The loaded versions, wherever they run."""

    async def call(self, address: str, blob: bytes) -> bytes:
        """Carries a packed blob to one replica of `…-v{semver}` and its reply back. Raises ReplicaLost."""
        ...


@dataclass(slots=True, eq=False)
class Passenger:
    call: Inference
    alone: bool
    at_ns: int
    future: asyncio.Future[Landed]


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of one call, and in whose company."""

    result: Prediction
    replica: str
    batch_size: int
    queue_us: int


class Lane:
    """The calls of one version."""

    def __init__(self, address: str, replicas: Replicas, batch_max: int, flights_max: int, timeout_s: float) -> None:
        self._address, self._replicas = address, replicas
        self._batch_max, self._flights_max, self._timeout_s = batch_max, flights_max, timeout_s
        self._waiting: deque[Passenger] = deque()
        self._waiting_bytes = 0
        self._flights: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._context = Context()  # a flight is nobody's child: Serve would cancel it for all aboard when one caller leaves
        self._called = self._solo = False
        self._suspects: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """Digest of an input → how often a replica was lost that had it alone, and when last."""

    def board(self, call: Inference, *, alone: bool = False) -> asyncio.Future[Landed]:
        """The future of a call's result. A call that rode with others when their replica was lost is sent `alone` (K16), and so is an
        input that was alone with a replica when that was lost; when that happens again it is refused for this version."""
        losses = self._losses(call) if self._suspects else 0
        if losses >= LOSSES_MAX:
            remedy = "check the values against what the model was made for; the provider can see its replica's end in Ray's logs"
            raise Refused(422, "replica_lost_by_input", f"{losses} replicas were lost while they had this input alone", "inputs", remedy)
        if len(self._waiting) >= QUEUE_CALLS_MAX or self._waiting_bytes + call.size > QUEUE_BYTES_MAX:
            raise Refused(
                429,
                "overloaded",
                f"{len(self._waiting)} calls of {self._address} with {self._waiting_bytes} bytes wait already",
                "",
                "slow down, then retry",
                ((b"retry-after", b"1"),),
            )
        passenger = Passenger(call, alone or losses > 0, time.monotonic_ns(), self._loop.create_future())
        self._waiting.append(passenger)
        self._waiting_bytes += call.size
        if not self._called and len(self._flights) < self._flights_max:
            self._called = True
            self._loop.call_soon(self._depart, context=self._context)  # not now: what came in the same turn of the loop rides along
        return passenger.future

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._flights

    def _depart(self) -> None:
        self._called = False
        while self._waiting and len(self._flights) < self._flights_max and not self._solo:
            if self._waiting[0].alone and self._flights:
                break  # alone with the replica, not only in its blob: whose loss it was must be plain
            aboard = self._next()
            if aboard:
                self._solo = aboard[0].alone
                flight = self._loop.create_task(self._fly(aboard), context=self._context)
                self._flights.add(flight)
                flight.add_done_callback(self._landed, context=self._context)

    def _next(self) -> list[Passenger]:
        aboard: list[Passenger] = []
        size = rows = 0
        while self._waiting and rows < self._batch_max and size < FLIGHT_BYTES_MAX:
            passenger = self._waiting[0]
            if passenger.alone and aboard:
                break
            self._waiting.popleft()
            self._waiting_bytes -= passenger.call.size
            if passenger.future.done():  # its caller gave up
                continue
            aboard.append(passenger)
            size += passenger.call.size
            rows += max(1, passenger.call.rows)
            if passenger.alone:
                break
        return aboard

    async def _fly(self, aboard: list[Passenger]) -> None:
        left_ns = time.monotonic_ns()
        blob, order = pack([p.call for p in aboard])
        try:
            reply = unpack_reply(await asyncio.wait_for(self._replicas.call(self._address, blob), self._timeout_s))
        except TimeoutError:
            return  # each caller watches its own clock
        except (Exception, asyncio.CancelledError) as e:  # whatever it was, nobody may be left waiting for it
            if not isinstance(e, ReplicaLost):
                logger.exception("a flight to %s failed", self._address)
            elif aboard[0].alone:
                self._suspect(aboard[0].call)
            for passenger in aboard:
                if not passenger.future.done():
                    passenger.future.set_exception(ReplicaLost(str(e)))
            return
        for place, result in zip(order, reply.results, strict=True):
            passenger = aboard[place]
            if not passenger.future.done():
                passenger.future.set_result(Landed(result, reply.replica, len(aboard), (left_ns - passenger.at_ns) // 1000))

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        self._solo = self._solo and bool(self._flights)
        self._depart()

    def _suspect(self, call: Inference) -> None:
        digest = _digest(call)
        self._suspects[digest] = (self._losses(call) + 1, time.monotonic())
        self._suspects.move_to_end(digest)
        while len(self._suspects) > SUSPECTS_MAX:
            self._suspects.popitem(last=False)

    def _losses(self, call: Inference) -> int:
        losses, at = self._suspects.get(_digest(call), (0, 0.0))
        return losses if time.monotonic() - at < SUSPECT_S else 0


def _digest(call: Inference) -> bytes:
    digest = hashlib.sha256(repr(call.signature).encode())
    for tensor in call.tensors:
        digest.update(tensor)
    return digest.digest()
