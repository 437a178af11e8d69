"""A gateway by itself: `python -m serving.replicas.gateway_standalone`, an HTTP server of its own at an edge where Ray Serve runs none.

It calls the same model replicas and writes the same facts; it joins the Ray cluster as a driver, so it must run where a node
of the cluster does (`MODELMARKET_RAY_ADDRESS`). A signal ends it once what is in flight is answered, and its epoch is closed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from types import FrameType
from typing import Any

import ray
import uvicorn
import uvloop

from events.process.json_logging import start_logging
from events.process.settings import Settings
from serving.gateway.asgi import Gateway
from serving.gateway.state import Edge
from serving.replicas.ray_apps import SHUTDOWN_S_MAX, RayReplicas

logger = logging.getLogger(__name__)

WATCH_S = 1.0


async def serve(settings: Settings) -> int:
    """Until a signal (0), or until only a new process helps (1)."""
    edge = Edge(settings, RayReplicas())
    app: Any = Gateway(edge)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.alone_port,
        lifespan="on",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=int(SHUTDOWN_S_MAX),
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not running.done():
        await asyncio.wait([running], timeout=WATCH_S)
        if edge.broken and not server.should_exit:
            logger.error("the gateway must be replaced: %s", edge.health())
            server.should_exit = True
    await running
    return int(edge.broken)


def _served(_number: int, _frame: FrameType | None) -> None:
    """The server takes the signal, ends, and raises it once more."""


def main() -> int:
    start_logging("gateway")
    settings = Settings()
    init: Any = ray.init
    init(address=settings.ray_address or "auto", log_to_driver=False, configure_logging=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _served)  # in place of Ray's handler, which would make of it a failure
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
