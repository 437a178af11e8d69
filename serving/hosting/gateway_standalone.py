"""A standalone gateway: `python -m serving.hosting.gateway_standalone`, an HTTP server of its own where Ray Serve runs no gateway.

It calls the same model replicas and writes the same facts; it joins the Ray cluster as a driver, so it must run where a node
of the cluster does (`MODELMARKET_RAY_ADDRESS`). A signal ends it once what is in flight is answered, and its epoch is closed.
Then it exits at once: at an ordinary exit Ray leaves the cluster first, and an update of Serve that comes meanwhile asks Ray to start
a new cluster in this very process, which then runs on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from types import FrameType
from typing import Any

import uvloop

from events.process.http_server import make_server
from events.process.json_logging import start_logging
from events.process.settings import Settings
from serving.gateway.asgi import Gateway
from serving.gateway.state import GatewayState
from serving.replicas.ray_client import RayReplicas, join_cluster

logger = logging.getLogger(__name__)

WATCH_S = 1.0
CONNECTIONS_MAX = 4096


async def serve(settings: Settings) -> int:
    """Until a signal (0), or until only a new process helps (1)."""
    state = GatewayState(settings, RayReplicas())
    app: Any = Gateway(state)
    server = make_server(
        app,
        settings.host,
        settings.standalone_gateway_port,
        connections_max=CONNECTIONS_MAX,
        address_max=CONNECTIONS_MAX // 4,
        lifespan="on",
    )
    running = asyncio.create_task(server.serve())
    while not running.done():
        await asyncio.wait([running], timeout=WATCH_S)
        if state.broken and not server.should_exit:
            logger.error("the gateway ends, to be started again: %s", state.health())
            server.should_exit = True
    await running
    return int(state.broken)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """uvicorn handles the signal itself, ends, and raises it once more."""


def main() -> None:
    start_logging("gateway")
    settings = Settings()
    join_cluster(settings.ray_address or "auto")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)  # replaces Ray's handler, which would end with an error
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(serve(settings))
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main()
