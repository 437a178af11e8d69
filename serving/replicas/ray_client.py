"""Calls model replicas through Ray Serve, as a driver of the cluster: one handle per version."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serving.replicas.model_replicas import NoReplica, ReplicaLost
from serving.serve_names import MODEL_DEPLOYMENT

logger = logging.getLogger(__name__)

JOIN_AGAIN_S = 0.3
REFUSED_MAX = 3
REPLICAS_S_MAX = 2.0
"""How long a call waits for the first replica of a version: a new handle hears of it within a tenth of a second, when there is one."""
LOOK_S = 0.02
GONE = "Ray's node is gone; a new gateway is being started"


class Cluster:
    """The Ray cluster that this process is a driver of. `lost` becomes true at once when the node's raylet is gone, for good: Ray has no way
    back for a driver."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.joined = self.lost = False
        self._watching: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[Any]] = set()

    @contextmanager
    def until_lost(self) -> Generator[None]:
        """Around a call of a replica: raises ReplicaLost as soon as the cluster is lost, after which Ray may never tell what became of it.
        Raises NoReplica when that is so already."""
        task = asyncio.current_task()
        assert task is not None
        if self.lost:
            raise NoReplica(GONE)
        self._calls.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self.lost:
                raise ReplicaLost(GONE) from None
            raise
        finally:
            self._calls.discard(task)

    async def join(self) -> None:
        """Returns when the cluster has taken this process in, however long it takes to be there. Raises what Ray raised when it answers
        and takes nobody in: what it has begun in this process is in its way then."""
        refused = 0
        while not self.joined:
            try:
                await asyncio.to_thread(_join, self._address)
                self.joined = True
            except OSError:
                await asyncio.sleep(JOIN_AGAIN_S)  # nobody is there yet
            except (RayError, RuntimeError) as e:
                refused += 1
                logger.warning("Ray does not take this process in: %s", str(e)[:200])
                if refused >= REFUSED_MAX:
                    raise
                await asyncio.sleep(JOIN_AGAIN_S)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """The raylet takes a connection that asks for nothing, and the kernel closes it when the raylet dies."""
        from ray._private import worker

        node: Any = worker.global_worker.node
        try:
            reader, _writer = await asyncio.open_unix_connection(node.raylet_socket_name)
            await reader.read(1)
        except OSError as e:
            logger.warning("the raylet: %s", e)
        self.lost = True
        for call in tuple(self._calls):
            call.cancel()


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=1).close()  # Ray itself would wait long, and write a page about it
    init: Any = ray.init
    init(address=address, log_to_driver=False, configure_logging=False)


class RayReplicas:
    """Implements `ModelReplicas`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._opening: dict[str, asyncio.Task[DeploymentHandle[Any]]] = {}

    async def call(self, address: str, blob: bytes) -> bytes:
        handle = self._handles.get(address) or await self._open(address)
        try:
            with self._cluster.until_lost():
                return await handle.remote(blob)
        except (RayError, RayServeException) as e:
            # A version that is deployed again has new replicas: the next call asks for a new handle.
            self._handles.pop(address, None)
            raise ReplicaLost(f"{type(e).__name__}: {str(e)[:300]}") from e

    async def _open(self, address: str) -> DeploymentHandle[Any]:
        """The handle of a version that has a replica; all that ask at once get the same. Raises NoReplica."""
        opening = self._opening.get(address)
        if opening is None:
            opening = self._opening[address] = asyncio.get_running_loop().create_task(self._new_handle(address))
            opening.add_done_callback(lambda _: self._opening.pop(address, None))
        handle = self._handles[address] = await asyncio.shield(opening)
        return handle

    async def _new_handle(self, address: str) -> DeploymentHandle[Any]:
        """Without a replica a call would wait for the whole of its time-out."""
        until = time.monotonic() + REPLICAS_S_MAX
        try:
            # In a thread: it asks Serve's controller, and waits for it.
            found: Any = await asyncio.to_thread(serve.get_deployment_handle, MODEL_DEPLOYMENT, app_name=address)
            handle: DeploymentHandle[Any] = found.infer
            while not handle.running_replicas_populated():
                if time.monotonic() > until or self._cluster.lost:
                    raise NoReplica("none is running yet")
                await asyncio.sleep(LOOK_S)
        except (RayError, RayServeException, KeyError) as e:  # KeyError: Serve does not know the version yet
            raise NoReplica(f"{type(e).__name__}: {str(e)[:300]}") from e
        return handle
