"""The Ray head of a stack: every port inside the stack's block, its session in the stack's own short folder."""

from __future__ import annotations

import contextlib
import http.client
import json

from events.process.settings import Settings
from infra.launcher.paths import ROOT, StackPaths

SERVE_PATH = "/api/serve/applications/"
SERVE_ASKED_S_MAX = 2.0

# Offsets from the base port. Health ports of the Faust workers are between, see events/process/settings.py.
GCS, AGENT, AGENT_GRPC, RUNTIME_ENV, NODE_MANAGER, OBJECT_MANAGER, METRICS = 20, 22, 23, 24, 25, 26, 27
MONITOR_METRICS, DASHBOARD_METRICS = 30, 31
WORKERS = range(110, 200)
"""Workers, and drivers: the gateways."""


def fixed_ports(settings: Settings) -> tuple[int, ...]:
    """Ports that must be free before the head starts; workers choose among theirs."""
    own = (GCS, AGENT, AGENT_GRPC, RUNTIME_ENV, NODE_MANAGER, OBJECT_MANAGER, METRICS, MONITOR_METRICS, DASHBOARD_METRICS)
    return (settings.ray_dashboard_port, *(settings.port(offset) for offset in own))


def address(settings: Settings) -> str:
    """Where drivers join the cluster."""
    return f"{settings.host}:{settings.port(GCS)}"


def health_url(settings: Settings) -> str:
    """Answered by the node's agent, which comes last: then the head, its REST interface and the node are there."""
    return f"http://{settings.host}:{settings.port(AGENT)}/api/local_raylet_healthz"


def command(settings: Settings, paths: StackPaths, python: str) -> tuple[str, ...]:
    ports = {
        "port": GCS,
        "dashboard-port": settings.ray_dashboard_port - settings.base_port,
        "dashboard-agent-listen-port": AGENT,
        "dashboard-agent-grpc-port": AGENT_GRPC,
        "runtime-env-agent-port": RUNTIME_ENV,
        "node-manager-port": NODE_MANAGER,
        "object-manager-port": OBJECT_MANAGER,
        "metrics-export-port": METRICS,
        "min-worker-port": WORKERS.start,
        "max-worker-port": WORKERS.stop - 1,
    }
    return (
        *(python, "-m", "infra.ray_start", "start", "--head", "--block", "--disable-usage-stats"),
        f"--node-ip-address={settings.host}",
        f"--dashboard-host={settings.host}",
        "--include-dashboard=true",
        # Neither is needed on one machine: the one starts nodes, the other copies workers' logs to drivers.
        *("--no-monitor", "--include-log-monitor=false"),
        f"--temp-dir={paths.ray}",
        f"--num-cpus={settings.ray_node_cpus}",
        f"--object-store-memory={256 << 20}",
        *(f"--{name}={settings.port(offset)}" for name, offset in ports.items()),
    )


def environment(settings: Settings, paths: StackPaths) -> dict[str, str]:
    """What `ray start` and every process below it needs; the defaults of most of these are shared by all stacks of a machine."""
    return {
        "PYTHONPATH": f"{ROOT / 'infra' / 'lean'}:{ROOT}",
        # Ray rewrites its processes' titles; without this their environment, and so the stack's mark, is overwritten by it.
        "SPT_NOENV": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(paths.ray_token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Off, Ray takes loopback for the node's own address, as it does on a Mac; on, it replaces it by the machine's public one.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_START_HOOK": "infra.rayhook.small_head",
        "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "infra.rayhook.replicas_on_loopback",
        "AUTOSCALER_METRIC_PORT": str(settings.port(MONITOR_METRICS)),
        "DASHBOARD_METRIC_PORT": str(settings.port(DASHBOARD_METRICS)),
        # At `down` no other node can take anything over, so draining is of no use (default 30 s).
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Which would give each replica an HTTP server of its own, on every interface.
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    }


def begin_serve(settings: Settings, paths: StackPaths) -> http.client.HTTPConnection:
    """Asks Ray to start Serve without applications, which takes some seconds, while the log is still being prepared. Returns when Ray has the
    request; the caller closes the connection when it no longer waits. Only for a head that has just been started, and before a controller
    runs: Serve removes what is not in a configuration (K18). Ray takes one configuration after another, so the controller's comes later."""
    from serving.control.serve_plan import serve_config  # here, as below

    # The head of this stack, wherever `settings.ray_dashboard_url` sends the controller.
    connection = http.client.HTTPConnection(settings.host, settings.ray_dashboard_port, timeout=SERVE_ASKED_S_MAX)
    with contextlib.suppress(OSError):  # then the controller starts Serve
        config = json.dumps(serve_config(()))
        connection.request("PUT", SERVE_PATH, config, {"Content-Type": "application/json", **_authorization(paths)})
    return connection


def _authorization(paths: StackPaths) -> dict[str, str]:
    return {"Authorization": f"Bearer {paths.ray_token.read_text().strip()}"}
