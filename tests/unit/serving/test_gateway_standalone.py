"""How a standalone gateway ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENDING = """
import atexit, sys, threading, types

ray_client = types.ModuleType("serving.replicas.ray_client")
ray_client.RayReplicas, ray_client.join_cluster = object, lambda address: None
sys.modules["serving.replicas.ray_client"] = ray_client

from serving.hosting import gateway_standalone

async def served(settings):
    threading.Thread(target=threading.Event().wait).start()  # as Ray's own, which start a cluster while the process ends
    atexit.register(threading.Event().wait)
    return STATUS

gateway_standalone.serve = served
gateway_standalone.main()
"""


@pytest.mark.parametrize("status", [0, 1])
def test_when_it_has_served_no_thread_and_no_exit_handler_of_ray_holds_the_process(status: int) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING.replace("STATUS", str(status))], timeout=30, check=False)
    assert ended.returncode == status
