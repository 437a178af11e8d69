"""Calls model replicas through Ray Serve: one handle per version."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serving.replicas.model_replicas import ReplicaLost
from serving.serve_names import MODEL_DEPLOYMENT


def join_cluster(address: str) -> None:
    """This process becomes a driver of the Ray cluster at `address` (`auto`: the one on this machine)."""
    init: Any = ray.init
    init(address=address, log_to_driver=False, configure_logging=False)


class RayReplicas:
    """Implements `ModelReplicas`."""

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
            # A version that is deployed again has new replicas: the next call asks for a new handle.
            self._handles.pop(address, None)
            raise ReplicaLost(f"{type(e).__name__}: {str(e)[:300]}") from e
