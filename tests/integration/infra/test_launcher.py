"""The launcher on real parts: started parts work, stopped parts are gone, and after any kill the next start works."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from events.process.settings import Settings
from infra.launcher import LaunchFailed, Stack, processes
from infra.launcher.paths import MARK_VARIABLE
from infra.launcher.status import PartStatus
from infra.launcher.supervision import settings_environment
from serving.metering.epoch_certificate import certified
from tests.support.polling import eventually
from tests.support.stacks import kill_stack, running_stack

ROOT = Path(__file__).resolve().parents[3]
LOG = {"kafka", "registry"}


@pytest.fixture
def stack(stack_settings: Settings) -> Iterator[Stack]:
    """A stack of the test's own; whatever the test does, nothing of it is left."""
    stack = Stack(stack_settings)
    try:
        yield stack
    finally:
        kill_stack(stack)


def command_line(stack: Stack, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.app", *arguments],
        cwd=ROOT,
        env={**os.environ, **settings_environment(stack.settings)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )


def mentions(stack: Stack) -> set[int]:
    """Processes of this stack by what they were started with: found without the mark, as a second opinion."""
    signs = (str(stack.paths.folder), str(stack.paths.short))
    own = processes.ancestry(os.getpid())
    return {pid for pid in processes.pids() if pid not in own and any(sign in processes.command_of(pid) for sign in signs)}


def assert_nothing_is_left(stack: Stack) -> None:
    assert processes.marked(stack.paths.mark) == set()
    assert mentions(stack) == set()
    assert not stack.paths.short.exists()
    for part in stack.parts.values():
        for port in part.ports:
            with socket.socket() as probe:
                assert probe.connect_ex((stack.settings.host, port)) != 0, f"port {port} of {part.name} still answers"


def all_healthy(stack: Stack, parts: set[str]) -> None:
    """These and no others. `status` waits two seconds at most for parts, which may be busy."""
    eventually(lambda: {part.name for part in stack.status().parts if part.healthy} == parts, f"{sorted(parts)} are healthy")


def test_the_shared_log_stack_answers(log_stack: Stack) -> None:
    assert log_stack.pid("kafka")
    assert httpx.get(f"{log_stack.settings.registry}/subjects", trust_env=False, timeout=60).status_code == 200


def test_a_second_up_finds_everything_up(log_stack: Stack) -> None:
    before = log_stack.pid("kafka")
    eventually(lambda: log_stack.up(LOG) is False, "everything is up")  # a part that did not answer in time is asked again
    assert log_stack.pid("kafka") == before


def test_up_with_other_settings_is_refused_while_the_stack_runs(log_stack: Stack) -> None:
    other = Stack(log_stack.settings.model_copy(update={"workers": 2}))
    with pytest.raises(LaunchFailed) as refusal:
        other.up(LOG)
    assert refusal.value.code == "settings-changed"


def test_status_shows_health_pid_and_memory(log_stack: Stack) -> None:
    def answered() -> dict[str, PartStatus]:
        by_name = {part.name: part for part in log_stack.status().parts}
        return by_name if by_name["kafka"].healthy and by_name["kafka"].pss_bytes else {}

    by_name = eventually(answered, "Kafka answers in time")
    assert by_name["kafka"].state == "healthy"
    assert by_name["kafka"].pid == log_stack.pid("kafka")
    assert 100e6 < by_name["kafka"].pss_bytes < 600e6
    assert by_name["gateway"].state == "stopped"


def test_an_unknown_part_is_named_with_those_there_are(log_stack: Stack) -> None:
    with pytest.raises(LaunchFailed, match="no part kafak") as refusal:
        log_stack.up({"kafak"})
    assert "kafka, registry" in refusal.value.remedy


def test_down_leaves_no_process_no_socket_and_no_port(stack: Stack) -> None:
    stack.up(LOG)
    assert processes.marked(stack.paths.mark)
    assert mentions(stack)
    assert stack.down() is True
    assert_nothing_is_left(stack)
    assert stack.down() is False


def test_what_was_written_is_there_after_down_and_up(stack: Stack) -> None:
    schema = {"schema": '{"type": "record", "name": "Kept", "fields": []}'}
    stack.up({"registry"})
    subject = f"{stack.settings.registry}/subjects/kept/versions"
    written = httpx.post(subject, json=schema, trust_env=False, timeout=20).json()["id"]
    stack.down()
    stack.up({"registry"})
    assert httpx.get(f"{subject}/1", trust_env=False, timeout=60).json()["id"] == written


def test_a_killed_kafka_comes_back_by_itself(log_stack: Stack) -> None:
    killed = log_stack.kill9("kafka")
    eventually(lambda: log_stack.pid("kafka") not in (None, killed), "the supervisor starts it again")
    log_stack.wait_healthy("kafka", 60)


def test_a_part_of_a_stack_that_does_not_run_cannot_be_restarted(stack: Stack) -> None:
    restart = command_line(stack, "restart", "kafka")
    assert "the stack does not run" in restart.communicate(timeout=120)[0]
    assert restart.returncode == 1


def test_one_part_is_started_again_while_the_others_go_on(log_stack: Stack) -> None:
    before = {name: log_stack.pid(name) for name in LOG}
    restart = command_line(log_stack, "restart", "kafka")
    output = restart.communicate(timeout=240)[0]
    assert restart.returncode == 0, output
    after = {name: log_stack.pid(name) for name in LOG}
    assert after["kafka"] not in (None, before["kafka"])
    assert after["registry"] == before["registry"]
    restart = command_line(log_stack, "restart", "kafak")
    assert "there is no part kafak" in restart.communicate(timeout=120)[0]
    assert restart.returncode == 1


def test_the_signer_needs_no_other_part_and_signs_with_its_own_key_after_a_restart(stack: Stack) -> None:
    def signed_by() -> str:
        certificate = asyncio.run(certified(stack.settings, "log", "producer", "epoch", bytes(32), within_s=20))
        return certificate.signed_by

    stack.up({"signer"})
    first, before = signed_by(), stack.pid("signer")
    all_healthy(stack, {"signer"})
    stack.restart("signer")
    assert stack.pid("signer") not in (None, before)
    assert signed_by() == first
    keys = stack.settings.folder / "keys"
    assert {file.name for file in keys.iterdir()} == {"market.key", "market.pub", "signer.password"}


def test_a_killed_up_does_not_block_the_next(stack: Stack) -> None:
    killed = command_line(stack, "up", "kafka", "registry")
    eventually(lambda: stack.supervisor.pid() is not None, "the supervisor is there")
    killed.kill()
    killed.wait(10)
    stack.up(LOG)
    all_healthy(stack, LOG)


def test_an_up_killed_while_it_formats_the_brokers_storage_does_not_block_the_next(stack: Stack) -> None:
    killed = command_line(stack, "up", "kafka")
    eventually(lambda: any((stack.settings.folder / "kafka").glob("format-*/server.properties")), "the storage is being formatted")
    killed.kill()
    killed.wait(10)
    stack.up({"kafka"})
    all_healthy(stack, {"kafka"})
    assert not list((stack.settings.folder / "kafka").glob("format-*/server.properties"))


def test_a_killed_supervisor_does_not_block_the_next_up(stack: Stack) -> None:
    stack.up(LOG)
    orphans = {stack.pid("kafka"), stack.pid("registry")}
    supervisor = stack.supervisor.pid()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not processes.alive(supervisor), "the supervisor is gone")
    assert orphans <= processes.marked(stack.paths.mark)
    left = {part.name: part for part in stack.status().parts if part.state != "stopped"}
    assert {name: part.state for name, part in left.items()} == {"kafka": "unsupervised", "registry": "unsupervised"}
    assert {part.pid for part in left.values()} == orphans
    assert all("`modelmarket down`, then `up`" in part.detail and not part.healthy for part in left.values())
    assert stack.up(LOG) is True
    assert not any(pid and processes.alive(pid) for pid in orphans)


def test_down_ends_what_a_killed_supervisor_left(stack: Stack) -> None:
    stack.up({"kafka"})
    supervisor = stack.supervisor.pid()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    assert stack.down() is True
    assert_nothing_is_left(stack)


def test_a_taken_port_is_named_with_its_setting(stack: Stack) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the test before may linger on this port
        taken.bind((stack.settings.host, stack.settings.kafka_port))
        taken.listen()
        with pytest.raises(LaunchFailed) as refusal:
            stack.up({"kafka"})
    assert refusal.value.code == "port-taken"
    assert str(stack.settings.kafka_port) in refusal.value.message
    assert f"process {os.getpid()}" in refusal.value.message
    assert "MODELMARKET_BASE_PORT" in refusal.value.remedy


def test_a_part_that_cannot_start_fails_with_the_end_of_its_log(stack: Stack) -> None:
    fails = (sys.executable, "-c", "raise SystemExit('the event store is not where it should be')")
    stack.parts["relay"] = replace(stack.parts["relay"], command=fails)
    with pytest.raises(LaunchFailed) as refusal:
        stack.up({"relay"})
    assert refusal.value.code == "part-crashes"
    assert "the event store is not where it should be" in refusal.value.log_tail


@pytest.fixture(scope="module")
def ray_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("ray"), {"kafka", "ray"}) as stack:
        yield stack


def test_every_process_of_ray_carries_the_mark_and_listens_on_loopback_only(ray_stack: Stack) -> None:
    members = processes.ProcessTable.read().tree(ray_stack.pid("ray") or 0)
    mark = f"{MARK_VARIABLE}={ray_stack.paths.mark}".encode()
    unmarked = {pid for pid in members if mark not in processes.environment_of(pid)}

    def strangers() -> list[str]:
        """Some had ended when they were looked at, or were becoming another program."""
        return [processes.command_of(pid) for pid in unmarked if processes.alive(pid) and mark not in processes.environment_of(pid)]

    eventually(lambda: not strangers(), lambda: f"each carries the mark; without it: {strangers()}", 10)
    listening = {tuple(c.laddr) for c in psutil.net_connections("tcp") if c.pid in members and c.status == "LISTEN"}
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}
    block = range(ray_stack.settings.base_port, ray_stack.settings.base_port + 200)
    assert [port for _, port in listening if port not in block] == []


def test_two_stacks_with_their_own_ray_run_side_by_side(ray_stack: Stack, stack: Stack) -> None:
    before = {name: ray_stack.pid(name) for name in ("kafka", "ray")}
    stack.up({"kafka", "ray"})
    for one in (stack, ray_stack):
        all_healthy(one, {"kafka", "ray"})
    assert not processes.marked(stack.paths.mark) & processes.marked(ray_stack.paths.mark)
    stack.down()
    assert_nothing_is_left(stack)
    assert {name: ray_stack.pid(name) for name in before} == before
    all_healthy(ray_stack, {"kafka", "ray"})


def test_a_killed_ray_comes_back_without_what_it_left(ray_stack: Stack) -> None:
    before = processes.ProcessTable.read().tree(ray_stack.pid("ray") or 0)
    killed = ray_stack.kill9("ray")
    eventually(lambda: ray_stack.pid("ray") not in (None, killed), "the supervisor starts it again")
    ray_stack.wait_healthy("ray", 180)
    assert not any(processes.alive(pid) for pid in before)
    ray_stack.restart("ray")  # by itself: no controller that was not there
    all_healthy(ray_stack, {"kafka", "ray"})
    assert ray_stack.pid("controller") is None
