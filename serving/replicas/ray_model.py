"""A model version inside Ray Serve: its replica, and the builder of its application.

The controller names the builder and its arguments in Serve's declarative configuration (`serving.control.serve_plan`) and imports
nothing of this. One event loop per process, as RAY_SERVE_THROUGHPUT_OPTIMIZED sets it up.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ray import serve

from events.facts.fact import TenantId
from events.process.artifacts import ArtifactCorrupt, ArtifactMissing, Artifacts
from events.process.json_logging import start_logging
from events.process.settings import Settings
from serving.model_interface import interface_of
from serving.replicas.batch_codec import pack_reply, unpack
from serving.runtimes.onnx import OnnxRuntime
from serving.runtimes.runtime import LoadFailed
from serving.serve_names import MODEL_DEPLOYMENT

INLINE_S_MAX = 0.02
"""A model that takes longer runs in a thread, so that its replica still answers health checks; below, a thread costs more."""
DRAIN_POLL_S = 0.2
SHUTDOWN_S_MIN, SHUTDOWN_MARGIN_S = 10.0, 2.0
"""A replica that is taken away may finish what it has, as long as its version's calls may take (K17); an idle one ends at once."""


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
        self._runtime = OnnxRuntime(model, interface_of(args["interface"]), settings.runtime_threads, settings.answer_bytes_max)
        self._runtime.warm_up()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._inline = self._may_inline = settings.runtime_threads == 1  # else runs wait for each other, and the event loop must not

    async def infer(self, blob: bytes) -> bytes:
        began = time.perf_counter()
        runs = unpack(blob)
        results = self._runtime.predict(runs) if self._inline else await asyncio.to_thread(self._runtime.predict, runs)
        self._inline = self._may_inline and time.perf_counter() - began < INLINE_S_MAX
        return pack_reply(self._name, results)

    def __del__(self) -> None:
        if hasattr(self, "_runtime"):
            self._runtime.close()


def build_model(args: dict[str, Any]) -> serve.Application:
    """The application of one version; `args` as `serve_plan.model_app` writes them."""
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
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        graceful_shutdown_timeout_s=max(SHUTDOWN_S_MIN, spec["timeout_us"] / 1e6 + SHUTDOWN_MARGIN_S),
        health_check_period_s=2,
        health_check_timeout_s=30,
        **scale,
    )
    return deployment.bind(args)
