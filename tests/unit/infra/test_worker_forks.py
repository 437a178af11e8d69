"""Workers of Ray as forks: each is what the node asked for, and when there is no fork it starts by itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.worker_forks import launch
from infra.worker_forks.server import worker_arguments
from tests.support.polling import eventually

SETUP = """
import json, sys
json.dump({"setup": sys.argv[1:]}, open("by-itself.json", "w"))
"""
WORKER = """
import json, os, random, sys
found = {"pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv[1:], "number": os.environ["NUMBER"], "chance": random.random()}
print("worker", os.environ["NUMBER"], flush=True)
with open(os.environ["NUMBER"] + ".part", "w") as file:
    json.dump(found, file)
os.rename(os.environ["NUMBER"] + ".part", os.environ["NUMBER"] + ".json")
sys.exit(3)
"""


@pytest.fixture
def node() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for the node's process: a server ends with it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


class Node:
    """Starts workers as Ray's node does."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder, self.process = folder, process
        (folder / "setup_worker.py").write_text(SETUP)
        (folder / "default_worker.py").write_text(WORKER)
        self.socket = folder / f"{process.pid}-01000000"

    def start(self, number: int, *options: str) -> str:
        """What the worker's program and its starter print."""
        environment = dict(os.environ, NUMBER=str(number), RAY_RAYLET_PID=str(self.process.pid), RAY_JOB_ID="01000000")
        environment |= {launch.FOLDER: str(self.folder), "PYTHONPATH": f"{launch.ROOT / 'infra' / 'lean'}:{launch.ROOT}"}
        programs = [str(self.folder / "setup_worker.py"), str(self.folder / "default_worker.py")]
        options = options or ("--serialized-runtime-env-context={}", "--language=PYTHON")
        command = [sys.executable, "-S", "-E", launch.__file__, *programs, "--node-id=7", *options]
        return subprocess.run(command, env=environment, cwd=self.folder, stdout=subprocess.PIPE, timeout=120, text=True, check=True).stdout

    def worker(self, number: int) -> dict[str, Any]:
        file = self.folder / f"{number}.json"
        eventually(file.exists, f"worker {number} ran")
        return json.loads(file.read_text())


def test_workers_are_forks_of_one_server_with_their_own_environment_arguments_and_output(
    tmp_path: Path, node: subprocess.Popen[bytes]
) -> None:
    ray = Node(tmp_path, node)
    printed = [ray.start(number) for number in (1, 2)]
    first, second = ray.worker(1), ray.worker(2)
    assert printed == ["worker 1\n", "worker 2\n"]
    assert first["parent"] == second["parent"]
    assert first["pid"] != second["pid"]
    assert first["chance"] != second["chance"]
    assert first["arguments"] == ["--node-id=7"]
    server = psutil.Process(first["parent"])
    node.kill()
    node.wait()
    eventually(lambda: not server.is_running(), "the server ends with its node")


def test_a_server_that_died_is_replaced_and_one_that_is_asked_nonsense_goes_on(tmp_path: Path, node: subprocess.Popen[bytes]) -> None:
    ray = Node(tmp_path, node)
    ray.start(1)
    server = psutil.Process(ray.worker(1)["parent"])
    for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n", (1 << 40).to_bytes(8, "big")):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(ray.socket))
            client.sendall(nonsense)
    ray.start(2)
    assert ray.worker(2)["parent"] == server.pid
    server.kill()
    eventually(lambda: not server.is_running(), "the server is gone")
    ray.start(3)
    assert ray.worker(3)["parent"] != server.pid


@pytest.mark.parametrize(
    "options", [('--serialized-runtime-env-context={"env_vars": {"RAY_x": "1"}}', "--language=PYTHON"), ("--language=JAVA",)]
)
def test_a_worker_unlike_the_others_of_its_job_starts_by_itself(
    tmp_path: Path, node: subprocess.Popen[bytes], options: tuple[str, ...]
) -> None:
    ray = Node(tmp_path, node)
    ray.start(1, *options)
    assert json.loads((tmp_path / "by-itself.json").read_text())["setup"][1:] == ["--node-id=7", *options]
    assert not ray.socket.exists()


def test_without_a_server_a_worker_starts_by_itself(tmp_path: Path, node: subprocess.Popen[bytes]) -> None:
    ray = Node(tmp_path, node)
    ray.socket.mkdir()  # nothing can listen there
    ray.start(1)
    assert (tmp_path / "by-itself.json").exists()


def test_a_worker_gets_its_own_options_only() -> None:
    given = [
        "/x/setup_worker.py",
        "-S",
        "/x/default_worker.py",
        "--a=1",
        "--serialized-runtime-env-context={}",
        "--language=PYTHON",
        "--b=2",
    ]
    assert worker_arguments(given) == ["/x/default_worker.py", "--a=1", "--b=2"]
