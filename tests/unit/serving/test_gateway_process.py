"""How a gateway process ends."""

from __future__ import annotations

import subprocess
import sys

ENDING = """
import atexit, socket, sys, threading, types

ray_client = types.ModuleType("serving.replicas.ray_client")
ray_client.RayReplicas = ray_client.Cluster = object
sys.modules["serving.replicas.ray_client"] = ray_client

from serving.hosting import gateway_process

async def run(settings, listening, channel):
    threading.Thread(target=threading.Event().wait).start()  # as Ray's own, which start a cluster while the process ends
    atexit.register(threading.Event().wait)
    return 3

listening, (ours, theirs) = socket.create_server(("127.0.0.1", 0)), socket.socketpair()
sys.argv = ["gateway", str(listening.detach()), str(theirs.detach())]
gateway_process._run = run
gateway_process.main()
"""


def test_when_it_has_served_no_thread_and_no_exit_handler_of_ray_holds_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", ENDING], timeout=30, check=False).returncode == 3
