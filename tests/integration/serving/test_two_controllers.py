"""Two controllers on two hosts, which share Kafka and Ray and no file: one leads, the other takes over within ten seconds (K18)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from events.process.settings import Settings
from events.process.signing_keys import SIGNERS
from examples.decided_facts import DecidedFactWriter
from infra.launcher import Stack
from infra.launcher.ports import free_block
from infra.launcher.supervision import settings_environment
from serving.control.leadership import SURE_S_MAX, Leadership, NotLeader
from tests.support.polling import eventually, health, seconds_until
from tests.support.stacks import prepared_log, reached_from_elsewhere

TAKEN_OVER_S_MAX = 10.0


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with prepared_log(tmp_path_factory.mktemp("log")) as stack:
        facts = DecidedFactWriter(stack.settings)  # and heartbeats: without one nobody knows where decisions end
        yield stack
        facts.close()


class Ray:
    """The REST interface of Serve, without Ray: it keeps the configuration it is given, and who gave it."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {"applications": []}
        self.written_by = list[str]()
        ray = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                apps = {a["name"]: {"status": "RUNNING", "deployed_app_config": a, "deployments": {}} for a in ray.config["applications"]}
                nodes = {"data": {"summary": [{"raylet": {"state": "ALIVE"}}]}}
                self._answer(nodes if self.path.startswith("/nodes") else {"applications": apps})

            def do_PUT(self) -> None:
                config = json.loads(self.rfile.read(int(self.headers["content-length"])))
                ray.written_by.append(self.headers["authorization"].removeprefix("Bearer "))
                ray.config = config
                self._answer({})

            def _answer(self, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                with suppress(OSError):  # who asked may have been killed
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def forget(self) -> None:
        """As a Ray that was started anew: the controller that leads writes all of it again."""
        self.config = {"applications": []}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Host:
    """A host with a controller: a data folder and ports of its own. Its name is its token at Ray."""

    def __init__(self, name: str, log: Stack, ray: Ray, folder: Path, base_port: int) -> None:
        self.name, there = name, log.settings
        signers = {f"{signer}_public_keys": (there.folder / "keys" / f"{signer}.pub").read_text().strip() for signer in SIGNERS}
        known: dict[str, Any] = {"stack": there.stack, "registry_url": there.registry, "ray_dashboard_url": ray.url, "ray_auth_token": name}
        given: dict[str, Any] = known | signers | reached_from_elsewhere(there, "controller")
        self.settings = Settings(data=folder, base_port=base_port, **given)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MODELMARKET_")}
        secrets = {"MODELMARKET_RAY_AUTH_TOKEN": name, "MODELMARKET_KAFKA_SASL_PASSWORD": given["kafka_sasl_password"]}
        environment = kept | settings_environment(self.settings) | secrets
        folder.mkdir()
        with (folder / "controller.log").open("ab") as out:
            command = [sys.executable, "-m", "serving.control.controller"]
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    @property
    def leads(self) -> bool:
        return health(self.settings.controller_health_port)["status"] == "ready"

    @property
    def follows(self) -> bool:
        found = health(self.settings.controller_health_port)
        return found["status"] == "starting" and "another controller leads" in str(found.get("detail"))

    def tail(self) -> str:
        found = health(self.settings.controller_health_port)
        return f"{self.name}: {found}\n{(self.settings.folder / 'controller.log').read_text()[-3000:]}"

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def ray() -> Iterator[Ray]:
    ray = Ray()
    yield ray
    ray.close()


@pytest.fixture
def hosts(log: Stack, ray: Ray, tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """The first of them leads."""
    with free_block() as one, free_block() as two:
        first = Host("first", log, ray, tmp_path / "first", one)
        started = [first]
        try:
            eventually(lambda: first.leads, first.tail)
            second = Host("second", log, ray, tmp_path / "second", two)
            started.append(second)
            eventually(lambda: second.follows, second.tail)
            assert first.leads and ray.written_by == ["first"], "who joins takes nothing from who leads"
            yield first, second
        finally:
            for host in started:
                host.end()


def test_a_killed_controller_is_followed_by_that_of_another_host_within_ten_seconds(hosts: tuple[Host, Host], ray: Ray) -> None:
    first, second = hosts
    first.process.kill()
    ray.forget()
    taken_over_s = seconds_until(lambda: second.leads and ray.written_by[-1] == "second", "the second leads")
    assert taken_over_s <= TAKEN_OVER_S_MAX, f"it took {taken_over_s:.1f} s"


def test_a_paused_controller_that_wakes_after_another_took_over_writes_nothing(hosts: tuple[Host, Host], ray: Ray) -> None:
    first, second = hosts
    first.process.send_signal(signal.SIGSTOP)
    eventually(lambda: second.leads, "the second leads")
    ray.forget()
    first.process.send_signal(signal.SIGCONT)
    eventually(lambda: ray.written_by[-1] == "second", "the second writes")
    eventually(lambda: first.follows, "the first has noticed")
    ray.forget()
    eventually(lambda: ray.written_by.count("second") == 2, "the second writes again")
    assert ray.written_by == ["first", "second", "second"]


def test_only_the_leader_may_write_and_for_less_than_its_session(log: Stack, tmp_path: Path) -> None:
    known: dict[str, Any] = {"stack": log.settings.stack, **reached_from_elsewhere(log.settings, "controller")}

    def leadership(host: str) -> Leadership:
        return Leadership(Settings(data=tmp_path / host, **known), "controller")

    with leadership("a") as first:
        eventually(lambda: first.leads, "the first leads")
        assert 0 < first.ensure() - time.monotonic() <= SURE_S_MAX
        with leadership("b") as second:
            with pytest.raises(NotLeader):
                second.ensure()
            # As one that was paused so long that it believes what is no longer so.
            second._leads.set()  # pyright: ignore[reportPrivateUsage]
            with pytest.raises(NotLeader):
                second.ensure()
        first.ensure()
    with pytest.raises(NotLeader):
        first.ensure()
