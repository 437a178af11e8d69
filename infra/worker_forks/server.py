"""The fork server of a node and a job: imports what a worker needs, then forks one for each request.

A worker by itself imports Ray twice and Serve once, two to four seconds of processor time, and takes 100 MB. A fork has all of it at once, and
shares the pages that nobody writes. Forked is before any thread runs and before Ray connects, so a worker inherits modules and nothing else.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

MODULES = (
    "ray.actor",
    "ray._private.node",
    "ray.serve._private.replica",
    "events.process.artifacts",
    "events.process.json_logging",
    "events.process.settings",
    "serving.model_interface",
    "serving.replicas.batch_codec",
)
"""Not ONNX Runtime, nor what imports it: it starts a thread."""
ASKED_S_MAX, ASKED_BYTES_MAX = 10.0, 4 << 20
IDLE_S_MAX = 60.0
"""Its workers keep the pages that they share when it has ended."""
WORKER = "default_worker.py"
OF_SETUP = ("--serialized-runtime-env-context", "--language")
"""Options for the program that starts a worker's interpreter, not for the worker."""


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    for name in MODULES:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        sys.exit(f"{threads} threads run after the imports, so nothing is forked")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a worker ended
    gc.collect()
    gc.freeze()  # else a worker's first collection writes to every page
    serve(listener, os.pidfd_open(int(os.environ["RAY_RAYLET_PID"])))


def serve(listener: socket.socket, node: int) -> None:
    """Until the node's process is gone, or nobody asks any more."""
    while True:
        ready, _, _ = select.select([listener, node], [], [], IDLE_S_MAX)
        if listener not in ready:
            return
        connection, _ = listener.accept()
        try:
            with connection:
                connection.settimeout(ASKED_S_MAX)
                asked, descriptors = received(connection)
                worker = os.fork()
                if worker == 0:
                    listener.close()
                    connection.close()
                    run_worker(asked, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                connection.sendall(worker.to_bytes(8, "big"))
        except (OSError, ValueError) as e:  # this worker starts by itself then
            sys.stderr.write(f"a worker was not forked: {e!r}\n")


def received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and the three standard descriptors of the worker. Raises OSError, ValueError."""
    size, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    left = int.from_bytes(size, "big")
    if len(size) != 8 or left > ASKED_BYTES_MAX or len(descriptors) != 3:
        raise ValueError(f"{left} bytes with {len(descriptors)} descriptors are no request")
    blob = bytearray()
    while len(blob) < left:
        part = connection.recv(left - len(blob))
        if not part:
            raise ValueError("the request ended early")
        blob += part
    return json.loads(blob), list(descriptors)


def run_worker(asked: dict[str, Any], descriptors: list[int]) -> None:
    """In the fork: is the worker, and does not return."""
    status = 1
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        sys.argv = worker_arguments(asked["arguments"])
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def worker_arguments(arguments: list[str]) -> list[str]:
    """The worker's program and its options, of what the node would have started."""
    program = next(n for n, argument in enumerate(arguments) if argument.endswith(WORKER))
    return [argument for argument in arguments[program:] if not argument.startswith(OF_SETUP)]


if __name__ == "__main__":
    main()
