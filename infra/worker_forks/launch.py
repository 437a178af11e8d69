"""The program that Ray's node starts in place of a worker's interpreter: `python -S -E launch.py SETUP_WORKER DEFAULT_WORKER --…`.

It asks the fork server of its node and job for a worker and ends: the worker tells the node its own process id when it registers. Without a server it
starts one. When anything fails, and where the worker's environment is not the job's own, it becomes the interpreter that Ray asked for.
Standard library only, since it is read once per worker.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "MODELMARKET_WORKER_FORKS"
"""Names the folder of the servers' sockets, which only this user may enter."""
ANSWER_S_MAX = 30.0
"""A server that was just started imports first, two seconds of processor time."""
CONTEXT = "--serialized-runtime-env-context="


def main() -> None:
    arguments = sys.argv[1:]
    if forkable(arguments):
        try:
            worker_of_server(arguments)
            return
        except (OSError, KeyError) as e:
            sys.stderr.write(f"no fork for a worker of Ray, so it starts by itself: {e!r}\n")
    os.execv(sys.executable, [sys.executable, *arguments])


def forkable(arguments: list[str]) -> bool:
    """Whether nothing of this worker differs from the others of its job."""
    contexts = [a.removeprefix(CONTEXT) for a in arguments if a.startswith(CONTEXT)]
    return FOLDER in os.environ and all(context in ("", "{}") for context in contexts) and "--language=PYTHON" in arguments


def worker_of_server(arguments: list[str]) -> None:
    """Raises OSError when there is no worker."""
    # What Ray's library reads once, when it is imported: so a server is of one node and one job.
    path = f"{os.environ[FOLDER]}/{os.environ['RAY_RAYLET_PID']}-{os.environ['RAY_JOB_ID']}"
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            server = connected(path)
        except OSError:
            Path(path).unlink(missing_ok=True)  # of a server that has ended
            begin_server(path)
            server = connected(path)
    with server:
        asked = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}).encode()
        descriptors = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        server.sendmsg([len(asked).to_bytes(8, "big")], descriptors)
        server.sendall(asked)
        if len(server.recv(8)) != 8:
            raise OSError("the fork server ended")


def connected(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.settimeout(ANSWER_S_MAX)
    server.connect(path)
    return server


def begin_server(path: str) -> None:
    """It listens from now on, answers when it has imported, and is nobody's child: a worker must not have to wait for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(128)
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        try:
            os.setsid()
            if os.fork() == 0:
                os.set_inheritable(listener.fileno(), True)
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, 0)
                os.dup2(nothing, 1)  # what this worker prints is not the server's
                os.chdir(ROOT)
                # A thread that numpy's library starts when it is imported would not be there after a fork.
                environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
                os.execve(sys.executable, [sys.executable, "-m", "infra.worker_forks.server", str(listener.fileno())], environment)
        finally:
            os._exit(0)


if __name__ == "__main__":
    main()
