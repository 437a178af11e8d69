"""The gateway inside Ray Serve: its replica, and the builder of its application."""

from __future__ import annotations

from typing import Any

from ray import serve

from events.process.json_logging import start_logging
from events.process.settings import Settings
from serving.gateway.asgi import Gateway
from serving.gateway.state import GatewayState
from serving.hosting.ray_direct_ingress import FinishesAlways, serve_directly
from serving.replicas.ray_client import RayReplicas
from serving.serve_names import GATEWAY_DEPLOYMENT

DRAIN_POLL_S = 0.2
SHUTDOWN_S_MAX = 60.0
"""A gateway that is replaced keeps its place until it ends: calls that take longer are cut, and their epoch stays open (K17)."""


class GatewayReplica:
    """The ASGI application lives as long as the replica."""

    def __init__(self) -> None:
        start_logging("gateway")
        self._state = GatewayState(Settings(), RayReplicas())

    async def __serve_build_asgi_app__(self) -> FinishesAlways:
        gateway = Gateway(self._state)
        serve_directly(gateway)
        return FinishesAlways(gateway)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Nothing to do: `user_config` is where the controller keeps the version of the applied configuration (K18)."""

    def check_health(self) -> None:
        if self._state.broken:
            raise RuntimeError(f"the gateway must be replaced: {self._state.health()}")


def build_gateway(args: dict[str, Any]) -> serve.Application:
    """The gateway application; `args` = {"replicas": int, "per_node": int}, and what changes only so that the replicas are replaced.

    They are replaced without a call being refused. On several nodes it is one after another, and the others answer. Where one node has
    them all, a new one starts beside each old one first.
    """
    plain: Any = serve.deployment(serve.ingress()(GatewayReplica))
    one_node = args["replicas"] == args["per_node"]
    deployment = plain.options(
        name=GATEWAY_DEPLOYMENT,
        num_replicas=args["replicas"],
        max_replicas_per_node=args["per_node"] * (2 if one_node else 1),
        max_surge_percent=100 if one_node else 0,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=10_000,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        graceful_shutdown_timeout_s=SHUTDOWN_S_MAX,
        health_check_period_s=2,
        health_check_timeout_s=10,
    )
    return deployment.bind()
