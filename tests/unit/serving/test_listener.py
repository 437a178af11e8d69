"""The listener keeps the port: its processes may die, fail, hang or be replaced, and no connection is refused."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import httpx
import openai
import orjson
import pytest

from events.process.problem import PROBLEM_JSON
from serving.hosting.shared_socket import bind, others_listen
from tests.support.polling import eventually

ROOT = Path(__file__).resolve().parents[3]

LISTENER = """
import asyncio, sys
from pathlib import Path
from serving.hosting import listener
from serving.hosting.gateway_children import Children
from serving.hosting.shared_socket import bind

async def run():
    listening = bind("127.0.0.1", int(sys.argv[1]))
    await listener.listen(listening, Children((sys.executable, sys.argv[3]), 1, listening), Path(sys.argv[2]))

asyncio.run(run())
"""

CHILD = """
import asyncio, os, signal, socket, sys
from pathlib import Path
from events.process import http_server
from events.process.http_server import LeavingServer, server_config
from serving.hosting.gateway_process import Channel
from serving.hosting.shared_socket import others_listen

HERE = Path(__file__).parent
http_server.LINGER_S = 120.0  # of a busy machine; a connection that ends itself is not waited for
listening, channel = socket.socket(fileno=int(sys.argv[1])), Channel(int(sys.argv[2]))
if (HERE / "fails").exists():
    sys.exit(1)

async def app(scope, receive, send):
    if scope["path"] == "/hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
    if scope["path"] == "/long":
        (HERE / "long").touch()
        while not (HERE / "enough").exists():
            await asyncio.sleep(0.02)
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})

async def run():
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.set)
    while not (HERE / "ready").exists() and not heard.is_set():
        channel.report("starting", "it waits for the test")
        await asyncio.sleep(0.02)
    server = LeavingServer(server_config(app, "", 0, lifespan="off"))
    server.config.timeout_graceful_shutdown = 600
    serving = asyncio.ensure_future(server.serve([listening]))
    while not serving.done():
        server.should_exit = server.should_exit or heard.is_set() or (channel.hung_up and others_listen(listening))
        channel.report("leaving" if server.should_exit else "accepting" if server.started else "starting")
        await asyncio.wait([serving], timeout=0.02)

asyncio.run(run())
"""


class Running:
    """A listener of processes that answer their own number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.child = folder / "child.py"
        self.child.write_text(CHILD)
        self.listeners: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", LISTENER, str(self.port), str(self.folder / "state"), str(self.child)]
        self.listeners.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}))
        return self.listeners[-1]

    def ready(self) -> None:
        (self.folder / "ready").touch()

    def state(self, name: str) -> list[int]:
        file = self.folder / "state"
        return orjson.loads(file.read_bytes())[name] if file.exists() else []

    def get(self, path: str = "/v2") -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, trust_env=False)

    def answering(self) -> int:
        """The process that answers."""
        (answer,) = eventually(lambda: [found for found in (self.get(),) if found.is_success], "a process answers")
        return int(answer.text)

    def end(self) -> None:
        for listener in self.listeners:
            listener.kill()
            listener.wait()
        for pid in {pid for state in ("starting", "accepting", "leaving") for pid in self.state(state)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def running(tmp_path: Path) -> Generator[Running]:
    found = Running(tmp_path)
    try:
        yield found
    finally:
        found.end()


@contextlib.contextmanager
def called(running: Running) -> Generator[list[int | str]]:
    """The status of one call after another, each on a connection of its own; or what the connection raised."""
    heard, stop = list[int | str](), threading.Event()

    def call() -> None:
        while not stop.wait(0.005):
            try:
                heard.append(running.get().status_code)
            except httpx.TransportError as e:
                heard.append(repr(e))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield heard
    finally:
        stop.set()
        caller.join()


def test_while_no_process_accepts_callers_are_told_when_to_come_back(running: Running) -> None:
    running.start()
    answer = eventually(lambda: running.get("/v2/models/m/infer"), "the listener answers by itself")
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["content-type"]) == (503, "2", PROBLEM_JSON)
    assert answer.headers["connection"] == "close", "the next call finds a process"
    document = answer.json()
    assert (document["code"], document["error"]) == ("gateway_away", document["detail"])
    eventually(lambda: "it waits for the test" in running.get("/healthz").json()["detail"], "health says what is waited for")
    health = running.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (503, "starting")
    large = httpx.post(f"{running.url}/v2/models/m/infer", content=bytes(8 << 20), timeout=60, trust_env=False)
    assert large.status_code == 503, "it is read before it is refused"
    with pytest.raises(openai.InternalServerError, match="what to do") as refused:
        openai.OpenAI(api_key="mm_key", base_url=f"{running.url}/v1", max_retries=0).models.list()
    assert refused.value.code == "gateway_away"
    running.ready()
    assert running.answering() in running.state("accepting")


def test_a_killed_process_is_replaced_and_no_connection_is_refused_meanwhile(running: Running) -> None:
    running.ready()
    running.start()
    first = running.answering()
    with called(running) as heard:
        eventually(lambda: len(heard) > 10, "calls are answered")
        os.kill(first, signal.SIGKILL)
        eventually(lambda: running.answering() != first, "another process answers")
    assert {one for one in heard if isinstance(one, int)} <= {200, 503}
    assert len([one for one in heard if isinstance(one, str)]) <= 1, "the one call that the killed process had"


def test_a_restart_refuses_no_call_and_the_predecessor_finishes_its_long_ones(running: Running) -> None:
    running.ready()
    listener = running.start()
    first = running.answering()
    long: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: long.append(running.get("/long")))
    caller.start()
    eventually((running.folder / "long").exists, "a long call is under way")
    kept_s = httpx.Limits(keepalive_expiry=600)
    with httpx.Client(trust_env=False, limits=kept_s) as kept, called(running) as heard:
        assert int(kept.get(f"{running.url}/v2").text) == first
        listener.send_signal(signal.SIGHUP)
        eventually(lambda: running.state("leaving") == [first], "its successor accepts, and it leaves")
        (second,) = eventually(lambda: [pid for pid in (running.answering(),) if pid != first], "its successor answers new connections")
        # The predecessor still has this connection, and gives it up.
        (left,) = eventually(
            lambda: [answer for answer in (kept.get(f"{running.url}/v2"),) if answer.headers.get("connection") == "close"], "it is ended"
        )
        assert (left.status_code, int(left.text)) == (200, first)
        assert int(kept.get(f"{running.url}/v2").text) == second
    (running.folder / "enough").touch()
    caller.join(60)
    assert set(heard) == {200}
    assert (long[0].status_code, int(long[0].text)) == (200, first)
    eventually(lambda: running.state("leaving") == [], "and then it ends")


def test_a_successor_that_fails_leaves_its_predecessor_as_it_is(running: Running) -> None:
    running.ready()
    listener = running.start()
    first = running.answering()
    (running.folder / "fails").touch()
    with called(running) as heard:
        listener.send_signal(signal.SIGHUP)
        began = len(heard)
        eventually(lambda: len(heard) > began + 100, "calls go on")
    assert set(heard) == {200} and running.answering() == first
    (running.folder / "fails").unlink()
    eventually(lambda: running.answering() != first, "it is tried again")


def test_a_process_that_hangs_is_ended_and_replaced(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.ready()
    running.start()
    first = running.answering()
    with pytest.raises(httpx.TransportError):
        running.get("/hangs")
    assert running.answering() != first


def test_the_processes_of_a_killed_listener_go_on_until_those_of_the_next_one_accept(running: Running) -> None:
    running.ready()
    killed = running.start()
    first = running.answering()
    with called(running) as heard:
        killed.kill()
        killed.wait()
        (running.folder / "ready").unlink()
        running.start()
        began = len(heard)
        eventually(lambda: len(heard) > began + 100 and running.state("starting"), "the next listener does not answer in their place")
        running.ready()
        second = eventually(lambda: (now := running.answering()) != first and now, "its own process answers")
        eventually(lambda: {running.answering() for _ in range(20)} == {second}, "and the other one has left")
    assert set(heard) == {200}


def test_when_it_is_told_to_end_its_processes_finish_first(running: Running) -> None:
    running.ready()
    listener = running.start()
    first = running.answering()
    long: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: long.append(running.get("/long")))
    caller.start()
    eventually((running.folder / "long").exists, "a long call is under way")
    listener.send_signal(signal.SIGTERM)
    eventually(lambda: running.state("leaving") == [first], "it leaves")
    assert listener.poll() is None
    (running.folder / "enough").touch()
    caller.join(60)
    assert long[0].status_code == 200
    assert listener.wait(30) == 0


def test_a_socket_that_is_bound_beside_another_takes_no_connection_before_it_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first, second = bind("127.0.0.1", port), bind("127.0.0.1", port)
    with first, second:
        assert not others_listen(first) and not others_listen(second)
        first.listen()
        assert others_listen(second) and not others_listen(first)
        for _ in range(20):
            socket.create_connection(("127.0.0.1", port)).close()
        second.listen()
        assert others_listen(first)
