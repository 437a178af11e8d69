"""What runs inside Ray: one application per model version, and the gateway; each made by a builder from plain arguments.

The controller names the builders and their arguments in Serve's declarative configuration (`serving.control.serve_plan`); nothing here is
imported by it. One event loop per process, as RAY_SERVE_THROUGHPUT_OPTIMIZED sets it up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from events.facts.fact import TenantId
from events.process.artifacts import ArtifactCorrupt, ArtifactMissing, Artifacts
from events.process.json_logging import start_logging
from events.process.settings import Settings
from serving.control.serve_plan import MODEL_DEPLOYMENT
from serving.gateway.asgi import Gateway
from serving.gateway.batching import ReplicaLost
from serving.gateway.state import Edge
from serving.model_interface import interface_of
from serving.replicas.batch_codec import pack_reply, unpack
from serving.replicas.ray_direct import Uncancelled, take_over
from serving.runtimes.onnx import OnnxRuntime
from serving.runtimes.runtime import LoadFailed

logger = logging.getLogger(__name__)

INLINE_S_MAX = 0.02
"""A model that takes longer runs in a thread, so that its replica still answers health checks; below, a thread costs more."""
DRAIN_S = 0.2
SHUTDOWN_S_MAX, SHUTDOWN_MARGIN_S = 10.0, 2.0
"""A model replica may finish what it has, as long as its version's calls may take; what is done sooner ends sooner."""
GATEWAY_SHUTDOWN_S_MAX = 60.0
"""A gateway that is replaced takes its node's place until it ends: calls that take longer are cut, and their epoch stays open."""


class ModelReplica:
    """One loaded version. Its bytes are verified against their digest before every load."""

    def __init__(self, args: dict[str, Any]) -> None:
        start_logging("replica")
        settings = Settings()
        try:
            model = Artifacts(settings).read(TenantId(args["provider"]), args["artifact"])
        except ArtifactMissing as e:
            raise LoadFailed("artifact_missing", str(e)) from e
        except ArtifactCorrupt as e:
            raise LoadFailed("artifact_corrupt", str(e)) from e
        self._runtime = OnnxRuntime(model, interface_of(args["interface"]), settings.runtime_threads)
        self._runtime.warm_up()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._inline = True

    async def infer(self, blob: bytes) -> bytes:
        began = time.perf_counter()
        runs = unpack(blob)
        results = self._runtime.predict(runs) if self._inline else await asyncio.to_thread(self._runtime.predict, runs)
        self._inline = time.perf_counter() - began < INLINE_S_MAX
        return pack_reply(self._name, results)

    def __del__(self) -> None:
        if hasattr(self, "_runtime"):
            self._runtime.close()


class RayReplicas:
    """Implements `Replicas` with one Serve handle per version."""

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle[Any]] = {}

    async def call(self, address: str, blob: bytes) -> bytes:
        handle = self._handles.get(address)
        if handle is None:
            handle = serve.get_deployment_handle(MODEL_DEPLOYMENT, app_name=address).infer  # type: ignore[attr-defined]
            self._handles[address] = handle
        try:
            return await handle.remote(blob)
        except (RayError, RayServeException) as e:
            # A version that was away comes back under new replicas: ask for them anew.
            self._handles.pop(address, None)
            raise ReplicaLost(f"{type(e).__name__}: {str(e)[:300]}") from e


class GatewayReplica:
    """The gateway as Serve runs it: its ASGI application lives as long as the replica."""

    def __init__(self) -> None:
        start_logging("gateway")
        self._edge = Edge(Settings(), RayReplicas())

    async def __serve_build_asgi_app__(self) -> Uncancelled:
        gateway = Gateway(self._edge)
        take_over(gateway)
        return Uncancelled(gateway)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """The controller keeps the applied generation in `user_config` (K18); a gateway follows the log itself."""

    def check_health(self) -> None:
        if self._edge.broken:
            raise RuntimeError(f"the gateway must be replaced: {self._edge.health()}")


def build_model(args: dict[str, Any]) -> serve.Application:
    """The application of one version; `args` as `serve_plan.model_app` wrote them."""
    spec = args["spec"]
    low, high = spec["replicas_min"], max(spec["replicas_min"], spec["replicas_max"])
    actor: dict[str, Any] = {"num_cpus": spec["cpu_millis"] / 1000, "num_gpus": spec["gpu_millis"] / 1000}
    if spec["memory_bytes"]:
        actor["memory"] = spec["memory_bytes"]
    scale: dict[str, Any] = {"num_replicas": low}
    if high > low:
        scale = {"autoscaling_config": {"min_replicas": low, "max_replicas": high, "initial_replicas": low, "target_ongoing_requests": 2}}
    plain: Any = serve.deployment(ModelReplica)
    deployment = plain.options(
        name=MODEL_DEPLOYMENT,
        ray_actor_options=actor,
        max_ongoing_requests=32,
        graceful_shutdown_wait_loop_s=DRAIN_S,
        graceful_shutdown_timeout_s=max(SHUTDOWN_S_MAX, spec["timeout_us"] / 1e6 + SHUTDOWN_MARGIN_S),
        health_check_period_s=2,
        health_check_timeout_s=30,
        **scale,
    )
    return deployment.bind(args)


def build_gateway(args: dict[str, Any]) -> serve.Application:
    """The gateway application; `args` = {"replicas": int, "per_node": int}."""
    plain: Any = serve.deployment(serve.ingress()(GatewayReplica))
    deployment = plain.options(
        name="gateway",
        num_replicas=args["replicas"],
        max_replicas_per_node=args["per_node"],
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=10_000,
        graceful_shutdown_wait_loop_s=DRAIN_S,
        graceful_shutdown_timeout_s=GATEWAY_SHUTDOWN_S_MAX,
        health_check_period_s=2,
        health_check_timeout_s=10,
    )
    return deployment.bind()
