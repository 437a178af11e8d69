"""The part `gateway`: `python -m serving.hosting.listener` holds the gateway's port, and gateway processes accept on it.

It binds the port once and passes the socket to the processes that it starts (`gateway_children.py`). So a process can die, or be replaced by a
successor that already accepts, and no connection is refused. While none accepts, this process does, and answers 503 (`unserved.py`). It imports
neither Ray nor the pipeline. When it dies, its processes go on; the next listener binds beside them, and they leave once its own accept.

SIGHUP replaces the processes; SIGTERM ends them once what they have is answered, and then this process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import orjson

from events.process.http_server import PausingServer, server_config
from events.process.json_logging import start_logging
from events.process.settings import Settings
from serving.hosting.gateway_children import ACCEPTING, LEAVING, STARTING, Children
from serving.hosting.shared_socket import bind, others_listen
from serving.hosting.unserved import Unserved

logger = logging.getLogger(__name__)

GATEWAY = (sys.executable, "-m", "serving.hosting.gateway_process")
LOOK_S = 0.2
"""How soon it notices that the processes of a dead listener accept no more."""
CONNECTIONS_MAX = 1024


async def listen(listening: socket.socket, children: Children, state_file: Path) -> None:
    """Until a signal, or an error of ours."""
    loop, stopping, written = asyncio.get_running_loop(), asyncio.Event(), b""

    def stop() -> None:
        stopping.set()
        children.changed.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, children.replace)
    config = server_config(
        Unserved(lambda: children.detail), "", 0, connections_max=CONNECTIONS_MAX, address_max=CONNECTIONS_MAX // 4, lifespan="off"
    )
    unserved = PausingServer(config, listening)
    ending: asyncio.Task[None] | None = None
    while ending is None or not ending.done():
        accepting = bool(children.pids(ACCEPTING))
        await unserved.accept(not accepting and not others_listen(listening))
        if (state := _state(children)) != written:
            _write(state_file, state)
            written = state
        if children.failure is not None:
            raise children.failure
        if stopping.is_set() and ending is None:
            ending = loop.create_task(children.stop())
            ending.add_done_callback(lambda _: children.changed.set())
        with suppress(TimeoutError):
            await asyncio.wait_for(children.changed.wait(), None if accepting else LOOK_S)
        children.changed.clear()
    await ending


def _state(children: Children) -> bytes:
    """For whoever looks from outside, such as `modelmarket restart`."""
    return orjson.dumps({state: children.pids(state) for state in (STARTING, ACCEPTING, LEAVING)})


def _write(file: Path, state: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.write_bytes(state)
    fresh.rename(file)


async def run(settings: Settings) -> None:
    listening = bind(settings.host, settings.gateway_port)
    children = Children(GATEWAY, settings.gateways_per_node, listening)
    await listen(listening, children, settings.gateway_state_file)


def main() -> None:
    start_logging("listener")
    asyncio.run(run(Settings()))


if __name__ == "__main__":
    main()
