"""`make demo` ends with its last line, also when processes are killed while calls run; other people's clients then agree with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from events.process.settings import Settings
from infra.launcher import Stack
from infra.launcher.ports import free_block
from tests.support.stacks import kill_stack, listening, local_locks

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO_S_MAX = 900


@pytest.mark.timeout(DEMO_S_MAX + 60)
@pytest.mark.parametrize("chaos", [False, True], ids=["calm", "chaos"])
def test_the_demo_ends_with_its_last_line(chaos: bool, tmp_path: Path) -> None:
    with free_block() as base_port:
        environment = os.environ | {
            "MODELMARKET_STACK": "demo-test",
            "MODELMARKET_DATA": str(tmp_path / "demo"),
            "MODELMARKET_BASE_PORT": str(base_port),
        }
        command = [sys.executable, "-m", "examples.demo", *(["--chaos", "--stop"] if chaos else [])]
        stack = Stack(Settings(stack="demo-test", data=tmp_path / "demo", base_port=base_port))
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEMO_S_MAX, check=False)
            if done.returncode == 0 and not chaos:
                check_listeners(stack)
        finally:
            kill_stack(stack)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    match = re.fullmatch(r"demo ok: calls=(\d+) facts=(\d+) billed=([\d.]+)CNY difference=0", last)
    assert match, last
    calls, facts, billed = int(match[1]), int(match[2]), float(match[3])
    assert calls >= 2397
    assert facts >= calls
    assert calls * 0.002 < billed < calls * 0.002 + 0.01  # CNY 0.002 a call, and a little for bytes
    if chaos:
        assert [v for v in ("worker-0", "gateway", "relay", "kafka") if f"kill -9 {v}" in done.stdout] == [
            "worker-0",
            "gateway",
            "relay",
            "kafka",
        ]


def check_listeners(stack: Stack) -> None:
    """Nothing of a whole stack that serves calls listens anywhere but on loopback, and beside the ports whose locks `docs/security.md` names;
    it says of Ray's actors that they choose a further one."""
    found = listening(stack)
    assert {stack.settings.gateway_port, stack.settings.kafka_port, stack.settings.clickhouse_port} <= {port for _, port in found}
    assert {address for address, _ in found} <= {"127.0.0.1", "::ffff:127.0.0.1"}
    locks = local_locks(stack.settings)
    beside = {port: command for (_, port), command in found.items() if port not in locks}
    assert {port: command for port, command in beside.items() if not command.startswith("ray::")} == {}


def test_the_demo_leaves_a_stack_that_is_not_its_own_alone(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    with free_block() as base_port:
        environment = os.environ | {"MODELMARKET_DATA": str(tmp_path), "MODELMARKET_BASE_PORT": str(base_port)}
        command = [sys.executable, "-m", "examples.demo", "--stop"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "not the demo's" in done.stdout
    assert (tmp_path / "kafka").is_dir()
