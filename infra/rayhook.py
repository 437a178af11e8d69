"""Two functions that Ray calls in its own processes, to keep the local stack off the network.

They live outside the launcher's package, so that no Ray worker loads the launcher.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol


class StartParameters(Protocol):
    ray_client_server_port: int | None


def no_remote_drivers(parameters: StartParameters, head: bool) -> None:
    """RAY_START_HOOK: do not start the server for drivers on other machines: 60 MB, a port, and no switch on the command line."""
    parameters.ray_client_server_port = None


def replicas_on_loopback() -> None:
    """The worker set-up hook: a Serve replica binds its server for calls from other replicas to every interface, and takes
    pickles there. Here it gets loopback; its callers look for it at the node's address, which is loopback too."""
    from ray._common import tls_utils

    bind: Callable[[object, str], int] = tls_utils.add_port_to_grpc_server

    @functools.wraps(bind)
    def bind_to_loopback(server: object, address: str) -> int:
        return bind(server, address.replace("[::]", "127.0.0.1"))

    tls_utils.add_port_to_grpc_server = bind_to_loopback
