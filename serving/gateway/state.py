"""What one gateway process knows and owns: the fold of keys, models and prices, the meter of its epoch, a queue per version."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import uuid
from collections.abc import Awaitable
from typing import Any

from access.codes import keys_stale
from events.log.client import LogUnavailable, Reader, Writer
from events.log.fold_runner import FoldRunner
from events.log.schemas import open_codec
from events.process.settings import Settings
from events.process.signing_keys import SigningKey
from serving.gateway.identify import access_refused
from serving.gateway.routes import Routes
from serving.gateway.served_models import Version
from serving.gateway.version_queue import BATCHES_PER_REPLICA, VersionQueue
from serving.metering.epoch_certificate import certified
from serving.metering.meter import Meter, ProducerEpoch
from serving.refused import unavailable
from serving.replicas.model_replicas import ModelReplicas

logger = logging.getLogger(__name__)

TOPICS = ("models", "deployments", "accounts", "prices")
REPORT_S = 0.2
"""How soon a route that changed is reported as applied (K19)."""
DROP_QUEUES_TURNS = 50
"""Every tenth second the queues of unloaded versions are dropped: that looks at every version there is."""
CERTIFIED_S_MAX = 30.0
"""How long a gateway waits for the market's signer before it ends and starts anew."""
GARBAGE_MAX = 20_000
"""Objects allocated and not yet freed before Python's collector runs."""


class GatewayState:
    """Open from `start` to `stop`; both on one event loop."""

    def __init__(self, settings: Settings, replicas: ModelReplicas) -> None:
        self.settings = settings
        self.routes = Routes()
        self.opened = False
        self.failure: BaseException | None = None
        self._replicas = replicas
        self._queues: dict[str, tuple[int, VersionQueue]] = {}
        self._applied: dict[str, dict[str, int]] = {}
        self._task: asyncio.Task[None] | None = None

    # --- start and stop

    async def start(self) -> None:
        """Returns when the gateway is open, or broken."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        while not self.opened and self.failure is None:  # noqa: ASYNC110 - the task has many steps
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.opened:
            self.opened = False
            await self.meter.close()
            await asyncio.to_thread(self._fold_runner.stop)
            await asyncio.to_thread(self._writer.close)

    async def _run(self) -> None:
        try:
            await self._open()
            for turn in itertools.count():
                await asyncio.sleep(REPORT_S)
                self._report_applied_routes()
                if turn % DROP_QUEUES_TURNS == 0:
                    self._drop_idle_queues()
        except asyncio.CancelledError:
            raise
        except Exception as e:  # the health check restarts the process
            logger.exception("the gateway's background work failed; its health check ends this process")
            self.failure = e

    async def _open(self) -> None:
        codec, log_id = await asyncio.to_thread(self._schemas)
        epoch = str(uuid.uuid4())
        producer = f"gateway-{epoch[:8]}"
        self._writer = Writer(self.settings, producer)
        producer_epoch = ProducerEpoch(producer, epoch, log_id, self.settings.region)
        epoch_key = SigningKey.new()  # in this process's memory alone
        self.meter = Meter(self._writer, codec, producer_epoch, epoch_key, acknowledge_s_max=self.settings.acknowledge_s_max)
        snapshot = self.settings.folder / "snapshots" / "gateway.snapshot"
        self._fold_runner = FoldRunner(self.settings, codec, log_id, TOPICS, self.routes, name=producer, snapshot=snapshot)
        self._fold_runner.start()
        while not self._fold_runner.caught_up:
            if self._fold_runner.failure is not None:
                raise self._fold_runner.failure
            await asyncio.sleep(0.05)
        await self.meter.open(await certified(self.settings, log_id, producer, epoch, epoch_key.public, within_s=CERTIFIED_S_MAX))
        # The objects of the start stay: to scan them for cycles every few hundred calls would be a twentieth of the gateway's CPU time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE_MAX, 20, 20)
        self.opened = True
        logger.info("open: epoch %s at position %d of log %s", epoch, self._fold_runner.position, log_id)

    def _schemas(self) -> Any:
        reader = Reader(self.settings, "gateway-start")
        try:
            return open_codec(self.settings, reader)
        finally:
            reader.close()

    # --- freshness and health

    @property
    def fresh(self) -> bool:
        """The fold is near the end of the log: canaries may be trusted (K5)."""
        return self.opened and self._fold_runner.ready

    @property
    def ready(self) -> bool:
        return self.fresh and not self.meter.log_unavailable and not self.broken

    @property
    def broken(self) -> bool:
        """Only a new process helps."""
        return self.failure is not None or (self.opened and (self.meter.broken or self._fold_runner.failure is not None))

    def health(self) -> dict[str, Any]:
        if self.broken:
            why = self.failure or (self._fold_runner.failure if self.opened else None) or "the producer cannot go on without a gap"
            return {"status": "failed", "lag": None, "detail": str(why)[:300]}
        if not self.opened:
            return {"status": "starting", "lag": None}
        detail = {
            "lag": self._fold_runner.lag,
            "position": self._fold_runner.position,
            "age_s": round(min(self._fold_runner.age_s(), 1e9), 3),
        }
        if self.meter.log_unavailable:
            return {"status": "starting", **detail, "log": "unavailable", "detail": "Kafka does not take facts: calls are refused with 503"}
        if not self.ready:
            why = "; ".join(self._fold_runner.troubles) or "does the relay run?"
            return {"status": "starting", **detail, "log": "available", "detail": f"the newest heartbeat is old: {why}"}
        return {"status": "ready", **detail, "log": "available"}

    @property
    def longest_call_s(self) -> float:
        """How long a call that is under way may still take."""
        return max((queue.timeout_s for _, queue in self._queues.values()), default=0.0) + self.settings.acknowledge_s_max

    def require_fresh_keys(self) -> None:
        """Raises Refused (503) when keys cannot be checked: not yet folded, or no heartbeat for longer than the bound (K5)."""
        if not self.opened:
            raise unavailable("starting", "the gateway is starting", 2)
        if self._fold_runner.failure is not None or self._fold_runner.age_s() > self.settings.staleness_s_max:
            raise access_refused(keys_stale(self.settings.staleness_s_max))

    # --- queues

    def queue(self, version: Version) -> VersionQueue:
        """The queue of a version; a new deployment of it, with another spec, gets a new one."""
        spec = version.spec
        mark = hash((version.since, spec.batch_max, spec.replicas_max, spec.timeout_us))
        found = self._queues.get(version.address)
        if found is None or found[0] != mark:
            queue = VersionQueue(
                version.address,
                self._replicas,
                batch_max=spec.batch_max,
                batches_max=BATCHES_PER_REPLICA * spec.replicas_max,
                timeout_s=spec.timeout_us / 1e6,
            )
            self._queues[version.address] = found = (mark, queue)
        return found[1]

    def _drop_idle_queues(self) -> None:
        loaded = {v.address for v in self.routes.versions() if v.deployed} if self._queues else set[str]()
        for address in [a for a, (_, queue) in self._queues.items() if a not in loaded and queue.idle]:
            del self._queues[address]

    def _report_applied_routes(self) -> None:
        """One RouteApplied per change of a model's weights, per epoch; those that could not be written are tried again."""
        if not self.opened or self.meter.log_unavailable:
            return
        for name in list(self.routes.changed)[:100]:  # after a start at most 500 models a second
            self.routes.changed.discard(name)
            weights = dict(self.routes.models[name].route.weights)
            if self._applied.get(name, {}) == weights:
                continue
            body = {"model": name, "gateway": self.meter.epoch.producer, "position": self._fold_runner.position, "weights": weights}
            try:
                sent: Awaitable[Any] = self.meter.publish("RouteApplied", body, topic="deployments", key=name)
            except LogUnavailable:
                self.routes.changed.add(name)
                return
            self._applied[name] = weights
            asyncio.ensure_future(sent).add_done_callback(_retrieve)


def _retrieve(sent: asyncio.Future[Any]) -> None:
    """Marks an error as retrieved: no caller waits for this acknowledgement, and the next start reports the route again."""
    if not sent.cancelled():
        sent.exception()
