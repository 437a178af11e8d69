"""`status` answers within its bound whatever hangs, and counts the replicas of each model."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from events.process.settings import Settings
from infra.launcher import Stack
from infra.launcher.paths import MARK_VARIABLE, PART_VARIABLE, paths_of
from infra.launcher.ports import free_block
from infra.launcher.probes import Asked, ModelReplicas, ask_serve, models_of
from infra.launcher.status import STATUS_S_MAX, WITHOUT_SUPERVISOR

TRICKLE_S = 0.2
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@contextmanager
def trickling(port: int) -> Generator[None]:
    """Answers a byte at a time and never ends: no time-out of a socket notices."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(HEAD)
                while not ended.wait(TRICKLE_S):
                    connection.sendall(b" ")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        ended.set()


@contextmanager
def running(stack: Stack, part: str) -> Generator[int]:
    """A process that carries the mark of a part, as a killed supervisor leaves it."""
    environment = {MARK_VARIABLE: stack.paths.mark, PART_VARIABLE: part}
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout
    with process.stdout:
        process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait(5)


def test_a_part_that_answers_without_end_holds_up_no_other(tmp_path: Path) -> None:
    with free_block() as port:
        stack = Stack(Settings(stack="status", data=tmp_path, base_port=port))
        with running(stack, "relay") as pid, running(stack, "biller"), trickling(stack.settings.relay_health_port):
            began = time.monotonic()
            parts = {part.name: part for part in stack.status().parts}
            assert time.monotonic() - began < STATUS_S_MAX + 5
    relay = parts["relay"]
    assert (relay.state, relay.pid, relay.detail) == ("unsupervised", pid, f"{WITHOUT_SUPERVISOR} no answer in time")
    assert "refused" in parts["biller"].detail and parts["biller"].pss_bytes > 0
    assert parts["kafka"].state == "stopped"


def test_a_late_answer_is_not_waited_for_and_a_failure_is_raised() -> None:
    never = threading.Event()
    assert Asked(never.wait).by(time.monotonic() + 0.05, otherwise=False) is False
    assert Asked(lambda: 7).by(time.monotonic() + 10, 0) == 7
    with pytest.raises(ZeroDivisionError):
        Asked(lambda: 1 / 0).by(time.monotonic() + 10, 0)
    never.set()


def app(state: str, *replicas: str, wanted: int = 1, **more: Any) -> dict[str, Any]:
    deployment = {"target_num_replicas": wanted, "replicas": [{"state": one} for one in replicas], "status": "HEALTHY", "message": ""}
    args = {"model": "digits", "model_version": "1.0.0"}
    return {"status": state, "message": "", "deployed_app_config": {"args": args}, "deployments": {"model": deployment | more}}


def test_a_model_without_a_replica_is_not_healthy_unless_it_is_being_brought_up() -> None:
    def one(application: dict[str, Any]) -> ModelReplicas:
        (model,) = models_of({"applications": {"applied": app("RUNNING", wanted=0), "digits-v1.0.0": application}})
        return model

    healthy = one(app("RUNNING", "RUNNING", "STARTING", wanted=2))
    assert healthy == ModelReplicas("digits", "1.0.0", 1, 2, "running", "")
    assert healthy.healthy
    lost = one(app("UNHEALTHY", "STARTING", status="UNHEALTHY", message="no node has room"))
    assert (lost.running, lost.wanted, lost.detail, lost.healthy) == (0, 1, "no node has room", False)
    assert not one(app("RUNNING", "STOPPING")).healthy
    assert one(app("DEPLOYING", "STARTING")).healthy
    assert one(app("RUNNING", wanted=0)).healthy
    never_built = one({"status": "DEPLOY_FAILED", "message": "no such import", "deployments": {}})
    assert never_built == ModelReplicas("digits-v1.0.0", "", 0, 1, "deploy_failed", "no such import")
    assert not never_built.healthy
    assert models_of({"applications": {}}) == models_of({}) == ()


def test_why_ray_serve_tells_nothing_is_said(tmp_path: Path) -> None:
    with free_block() as port:
        settings = Settings(stack="status", data=tmp_path, base_port=port)
        paths = paths_of(settings)
        assert "ray.token" in str(ask_serve(settings, paths))
        paths.ray_token.parent.mkdir(parents=True, exist_ok=True)
        paths.ray_token.write_text("secret")
        assert "refused" in str(ask_serve(settings, paths))
