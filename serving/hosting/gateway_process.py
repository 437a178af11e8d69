"""A gateway process: `python -m serving.hosting.gateway_process LISTENING CHANNEL`, started by the listener with two open file descriptors.

It is a driver of the Ray cluster, so it runs where a node of the cluster does (`MODELMARKET_RAY_ADDRESS`), and accepts on the listener's socket
once its fold is complete, its epoch is open and Ray has taken it in. It leaves on a signal, when only a new process helps, when Ray's
node is gone, and when its listener is dead and another one's processes accept: it stops accepting, answers what it has, however long these calls
may take, and closes its epoch. Then it exits at once: at an ordinary exit Ray leaves the cluster first, and an update of Serve that comes
meanwhile asks Ray to start a new cluster in this very process, which then runs on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

import orjson
import uvloop

from events.process.http_server import GRACE_S, LeavingServer, server_config
from events.process.json_logging import start_logging
from events.process.settings import Settings
from serving.gateway.asgi import Gateway
from serving.gateway.state import GatewayState
from serving.hosting.gateway_children import ACCEPTING, LEAVING, STARTING
from serving.hosting.shared_socket import others_listen
from serving.replicas.ray_client import Cluster, RayReplicas

logger = logging.getLogger(__name__)

LOOK_S, STARTED_LOOK_S = 0.5, 0.05
"""How often it looks whether it has to leave; and whether it accepts, until it does: meanwhile the listener does, too, and refuses."""
CONNECTIONS_MAX = 4096


class Channel:
    """To the listener: what this process says of itself; and whether that is alive."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self.hung_up = False

    def report(self, state: str, detail: str = "") -> None:
        try:
            self._socket.send(orjson.dumps({"state": state, "detail": detail}) + b"\n")
            self.hung_up = self.hung_up or self._socket.recv(1) == b""
        except BlockingIOError:
            pass
        except OSError:
            self.hung_up = True


class GatewayProcess:
    def __init__(self, settings: Settings, listening: socket.socket, channel: Channel) -> None:
        self._listening, self._channel = listening, channel
        self._cluster = Cluster(settings.ray_address or "auto")
        self._state = GatewayState(settings, RayReplicas(self._cluster))
        self._gateway = Gateway(self._state)
        self._server = LeavingServer(
            server_config(self._gateway, "", 0, connections_max=CONNECTIONS_MAX, address_max=CONNECTIONS_MAX // 4, lifespan="off")
        )
        self._signalled = asyncio.Event()

    async def run(self) -> int:
        """Until it may end: 0, or 1 when it could not go on."""
        self._take_signals()
        serving = asyncio.get_running_loop().create_task(self._serve())
        while not serving.done():
            self._report()
            await asyncio.wait([serving], timeout=LOOK_S if self._server.started else STARTED_LOOK_S)
            if (why := self._reason_to_leave()) and not self._server.should_exit:
                logger.info("leaving: %s", why)
                self._leave(serving)
        with suppress(asyncio.CancelledError):  # it never accepted
            await serving
        self._channel.report(LEAVING)
        await self._gateway.close()
        return int(self._state.broken)

    async def _serve(self) -> None:
        await asyncio.gather(self._state.start(), self._cluster.join())
        self._take_signals()  # again: Ray's own handler aborts the process three seconds after a signal
        if self._state.opened:
            await self._server.serve([self._listening])

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled.set)

    def _leave(self, serving: asyncio.Task[None]) -> None:
        self._server.config.timeout_graceful_shutdown = round(GRACE_S + self._state.longest_call_s)
        self._server.should_exit = True
        self._report()
        if not self._server.started:
            serving.cancel()

    def _reason_to_leave(self) -> str:
        """Empty while it goes on."""
        if self._signalled.is_set():
            return "it was told to"
        if self._state.broken:
            return f"only a new process helps: {self._state.health()}"
        if self._cluster.lost:
            return "Ray's node is gone"
        if self._channel.hung_up and not self._server.started:
            return "its listener is dead"
        if self._channel.hung_up and others_listen(self._listening):
            return "another listener's processes accept"
        return ""

    def _report(self) -> None:
        if self._server.should_exit:
            self._channel.report(LEAVING)
        elif self._server.started:
            self._channel.report(ACCEPTING)
        else:
            health: dict[str, Any] = self._state.health()
            self._channel.report(STARTING, str(health.get("detail") or ("waiting for Ray" if self._state.opened else "folding the log")))


def main() -> None:
    start_logging("gateway")
    listening_fd, channel_fd = map(int, sys.argv[1:3])
    os.set_inheritable(listening_fd, False)
    listening = socket.socket(fileno=listening_fd)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_run(Settings(), listening, Channel(channel_fd)))
        logging.shutdown()
        os._exit(status)


async def _run(settings: Settings, listening: socket.socket, channel: Channel) -> int:
    return await GatewayProcess(settings, listening, channel).run()


if __name__ == "__main__":
    main()
