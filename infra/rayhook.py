"""Two functions that Ray calls in its own processes: they keep the local stack small and off the network.

They live outside the launcher's package, so that no Ray worker loads the launcher.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

T = TypeVar("T")

RAYLET_S_MAX = 60.0
"""How long this node's own raylet may take to report. Ray's own bound is 30 s, and a busy machine took longer, again at each new try. One that
hangs is started again after this, soon enough for the parts that wait for it."""


class StartParameters(Protocol):
    ray_client_server_port: int | None


def small_head(parameters: StartParameters, head: bool) -> None:
    """RAY_START_HOOK, called in `ray start` before it starts anything. What it changes has no switch on the command line."""
    parameters.ray_client_server_port = None  # the server for drivers on other machines: 60 MB and a port
    from ray._private import services

    start = cast("Callable[..., object]", services.start_ray_process)

    @functools.wraps(start)
    def start_small(command: list[str], process_type: str, *arguments: object, **named: object) -> object:
        if process_type == "dashboard":  # of its modules, each a process, only these two are used
            command = [*command, "--modules-to-load=ServeHead,NodeHead"]
        return start(command, process_type, *arguments, **named)

    setattr(services, "start_ray_process", start_small)  # noqa: B010, it has a type of its own
    services.get_node = patient(services.get_node, RAYLET_S_MAX)


def patient(ask: Callable[..., T], seconds: float, pause_s: float = 0.2) -> Callable[..., T]:
    """Asks again for so long while the answer is a RuntimeError."""

    @functools.wraps(ask)
    def asked(*arguments: object, **named: object) -> T:
        end = time.monotonic() + seconds
        while True:
            try:
                return ask(*arguments, **named)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(pause_s)

    return asked


def replicas_on_loopback() -> None:
    """The worker set-up hook: a Serve replica binds its server for calls from other replicas to every interface, and takes
    pickles there. Here it gets loopback; its callers look for it at the node's address, which is loopback too."""
    from ray._common import tls_utils

    bind: Callable[[object, str], int] = tls_utils.add_port_to_grpc_server

    @functools.wraps(bind)
    def bind_to_loopback(server: object, address: str) -> int:
        return bind(server, address.replace("[::]", "127.0.0.1"))

    tls_utils.add_port_to_grpc_server = bind_to_loopback
