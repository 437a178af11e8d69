"""How a standalone gateway ends."""

from __future__ import annotations

import subprocess
import sys

ENDING = """
import atexit, sys, threading, types

ray_client = types.ModuleType("serving.replicas.ray_client")
ray_client.RayReplicas, ray_client.join_cluster = object, lambda address: None
sys.modules["serving.replicas.ray_client"] = ray_client

from serving.hosting import gateway_standalone

async def served(settings):
    threading.Thread(target=threading.Event().wait).start()  # as Ray's own, which start a cluster while the process ends
    atexit.register(threading.Event().wait)
    return 3

gateway_standalone.serve = served
gateway_standalone.main()
"""


def test_when_it_has_served_no_thread_and_no_exit_handler_of_ray_holds_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", ENDING], timeout=30, check=False).returncode == 3
