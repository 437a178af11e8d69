"""What `ray start` calls just before it starts a node (RAY_START_HOOK)."""

from __future__ import annotations

from typing import Protocol


class StartParameters(Protocol):
    ray_client_server_port: int | None


def no_remote_drivers(parameters: StartParameters, head: bool) -> None:
    """Do not start the server for drivers on other machines: it costs 60 MB, listens, and has no switch on the command line."""
    parameters.ray_client_server_port = None
