"""The launcher's pure parts: the order of the stack, its supervisor's configuration, its environment, ports and health."""

from __future__ import annotations

import configparser
import shlex
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from events.process.settings import PORTS_PER_STACK, Settings
from infra.launcher import Stack, processes, raynode
from infra.launcher.part_secrets import NEEDED, SECRETS
from infra.launcher.parts import Part, parts_of
from infra.launcher.paths import MARK_VARIABLE, paths_of
from infra.launcher.ports import free_block
from infra.launcher.probes import ExitProbe, Health, HttpProbe, KafkaProbe, check
from infra.launcher.status import state_of
from infra.launcher.supervision import Supervised, configuration, settings_environment, stack_environment


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(stack="test", data=tmp_path, base_port=30_000, workers=3)


@pytest.fixture
def parts(settings: Settings) -> dict[str, Part]:
    return parts_of(settings, paths_of(settings))


def test_each_process_signs_in_at_the_local_clickhouse_as_what_it_is(parts: dict[str, Part]) -> None:
    users = {name: part.environment.get("MODELMARKET_CLICKHOUSE_USER") for name, part in parts.items()}
    workers = {f"worker-{n}": "ingest" for n in range(3)}
    assert {name: user for name, user in users.items() if user} == {**workers, "queries": "bills", "biller": "bills"}


def test_each_process_signs_in_at_kafka_as_what_it_is(parts: dict[str, Part]) -> None:
    roles = {name: part.environment.get("MODELMARKET_KAFKA_SASL_USERNAME") for name, part in parts.items()}
    same = {name: name for name in ("prepare", "commands", "relay", "queries", "biller", "controller", "gateway")}
    assert {name: role for name, role in roles.items() if role} == same | {f"worker-{n}": "worker" for n in range(3)}


def test_a_production_server_has_users_of_its_own(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"clickhouse_url": "https://clickhouse.example"})
    assert not any("MODELMARKET_CLICKHOUSE_USER" in part.environment for part in parts_of(elsewhere, paths_of(elsewhere)).values())


def test_each_part_comes_after_what_it_needs(parts: dict[str, Part]) -> None:
    seen: set[str] = set()
    for part in parts.values():
        assert set(part.after) <= seen, part.name
        seen.add(part.name)


def test_no_two_parts_share_a_port_and_all_are_in_the_block(settings: Settings, parts: dict[str, Part]) -> None:
    ports = [port for part in parts.values() for port in part.ports]
    assert len(ports) == len(set(ports))
    chosen = [settings.port(offset) for offset in raynode.WORKERS]
    assert not set(ports) & set(chosen)
    assert set(ports) | set(chosen) <= set(range(settings.base_port, settings.base_port + PORTS_PER_STACK))


def test_sockets_stay_below_the_length_that_the_kernel_takes(tmp_path: Path) -> None:
    deep = tmp_path / ("folder-" * 30)
    paths = paths_of(Settings(data=deep))
    ray_socket = paths.ray / "session_2026-11-20_16-52-54_256430_1155800" / "sockets" / "plasma_store"
    assert len(str(ray_socket)) <= 107
    assert len(str(paths.supervisor_socket)) <= 107


def test_the_supervisor_reads_back_exactly_the_command_and_the_environment(settings: Settings) -> None:
    part = Part("odd", ("/bin/echo", 'a "quoted" word', "100%", "back\\slash"), ExitProbe(), environment={"VALUE": '50% of "it"'})
    parsed = configparser.RawConfigParser()
    parsed.read_string(configuration([part], paths_of(settings)))
    section = parsed["program:odd"]
    assert tuple(shlex.split(section["command"].replace("%%", "%"))) == part.command
    assert section["environment"] == 'VALUE="50%% of \\"it\\""'


def test_processes_get_the_settings_that_were_chosen_and_none_of_the_callers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMARKET_REGION", "somewhere")
    monkeypatch.setenv("RAY_ADDRESS", "another:6379")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    chosen = settings.model_copy(update={"store_password": SecretStr("quiet"), "workers": 2})
    environment = stack_environment(chosen, paths_of(chosen), {})
    assert environment["MODELMARKET_STORE_PASSWORD"] == "quiet"
    assert environment["MODELMARKET_WORKERS"] == "2"
    assert "RAY_ADDRESS" not in environment
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert "MODELMARKET_REGION" not in environment


def test_a_part_is_given_the_secrets_it_needs_and_no_other(parts: dict[str, Part]) -> None:
    assert {name.upper() for name, field in Settings.model_fields.items() if field.annotation is SecretStr} == set(SECRETS)
    for part in parts.values():
        withheld = {name for name, value in part.environment.items() if value == ""}
        needed = NEEDED[part.name.partition("-")[0]]
        assert {f"MODELMARKET_{secret}" for secret in SECRETS if secret not in needed} <= withheld
        assert not any(f"MODELMARKET_{secret}" in part.environment for secret in needed)
    assert parts["ray"].environment["MODELMARKET_ADMIN_KEY"] == ""
    given = {
        secret: {part.name for part in parts.values() if f"MODELMARKET_{secret}" not in part.environment}
        for secret in ("MARKET_KEY", "SIGNER_PASSWORD")
    }
    assert given == {"MARKET_KEY": {"signer"}, "SIGNER_PASSWORD": {"signer", "gateway"}}


def test_settings_survive_the_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_a_free_block_of_ports_is_given_to_one_stack_at_a_time() -> None:
    with free_block() as first, free_block() as second:
        assert abs(first - second) >= PORTS_PER_STACK


def test_a_marked_process_and_its_children_are_found_and_ended() -> None:
    program = "import subprocess, sys, time; subprocess.Popen(['sleep', '60'], env={}); print(flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", program], env={MARK_VARIABLE: "test-of-marks"}, stdout=subprocess.PIPE)
    assert parent.stdout
    with parent.stdout:
        parent.stdout.readline()
    found = processes.marked("test-of-marks")
    assert parent.pid in found
    assert len(found) == 2
    assert processes.marked("another") == set()
    assert processes.marked("test-of-marks", "FURTHER=1") == set()
    assert processes.end_all("test-of-marks", gently_s=1) == set()
    assert parent.wait(5) != 0
    assert not any(processes.alive(pid) for pid in found)


def test_a_child_without_a_mark_that_outlives_its_parent_is_ended_too() -> None:
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}], env={{}}); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", program], env={MARK_VARIABLE: "test-of-children"}, stdout=subprocess.PIPE)
    assert parent.stdout
    with parent.stdout:
        parent.stdout.readline()  # the child ignores SIGTERM from now on
    found = processes.marked("test-of-children")
    assert len(found) == 2
    assert processes.end_all("test-of-children", gently_s=0.5) == set()
    parent.wait(5)
    assert not any(processes.alive(pid) for pid in found)


@contextmanager
def answering(status: int, body: bytes) -> Generator[int]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "health"),
    [
        (200, b'{"status": "ready", "lag": 7}', Health(ok=True, lag=7)),
        (200, b'{"status": "ready", "detail": "1 bill waits"}', Health(ok=True, detail="1 bill waits")),
        (200, b"Ok.\n", Health(ok=True)),
        (200, b'["no", "document"]', Health(ok=True)),
        (503, b'{"status": "starting", "lag": 40}', Health(ok=False, detail="HTTP 503 starting", lag=40)),
        (503, b'{"status": "failed", "detail": "a fact without a schema"}', Health(ok=False, detail="HTTP 503 a fact without a schema")),
        (503, b'{"status": "failed", "message": "Kafka does not acknowledge"}', Health(False, "HTTP 503 Kafka does not acknowledge")),
        (404, b"<html>", Health(ok=False, detail="HTTP 404")),
    ],
)
def test_health_is_what_the_part_says(status: int, body: bytes, health: Health) -> None:
    with answering(status, body) as port:
        assert check(HttpProbe(f"http://127.0.0.1:{port}/healthz")) == health


def test_a_web_server_on_kafkas_port_is_not_taken_for_kafka() -> None:
    with answering(200, b"hello") as port:
        assert not check(KafkaProbe("127.0.0.1", port)).ok


def test_a_port_without_a_listener_is_not_healthy() -> None:
    with free_block() as port:
        assert check(HttpProbe(f"http://127.0.0.1:{port}/healthz")).detail.startswith("no answer")
        assert not check(KafkaProbe("127.0.0.1", port)).ok


OK, NOT_OK = Health(ok=True), Health(ok=False)


@pytest.mark.parametrize(
    ("state", "uptime", "exit_status", "health", "once", "shown"),
    [
        ("RUNNING", 10, 0, OK, False, "healthy"),
        ("STARTING", 1, 0, OK, False, "healthy"),
        ("RUNNING", 10, 0, NOT_OK, False, "starting"),
        ("RUNNING", 1000, 0, NOT_OK, False, "unhealthy"),
        ("BACKOFF", 0, 1, NOT_OK, False, "restarting"),
        ("STOPPED", 0, 0, NOT_OK, False, "stopped"),
        ("FATAL", 0, 1, NOT_OK, False, "failed"),
        ("EXITED", 0, 0, NOT_OK, False, "failed"),
        ("EXITED", 0, 0, NOT_OK, True, "done"),
        ("EXITED", 0, 3, NOT_OK, True, "failed"),
        ("RUNNING", 2, 0, NOT_OK, True, "starting"),
    ],
)
def test_the_state_that_status_shows(
    parts: dict[str, Part], state: str, uptime: int, exit_status: int, health: Health, once: bool, shown: str
) -> None:
    part = parts["prepare"] if once else replace(parts["relay"], healthy_s_max=60)
    process = Supervised("it", state, pid=1 if uptime else 0, started=100, now=100 + uptime, exit_status=exit_status)
    assert state_of(part, process, health) == shown


def test_a_stack_that_was_never_started_is_stopped_in_all_its_parts(settings: Settings) -> None:
    stack = Stack(settings)
    assert {part.state for part in stack.status().parts} == {"stopped"}
    assert stack.down() is False
