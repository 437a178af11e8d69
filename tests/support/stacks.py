"""Stacks of real parts for tests: each on its own ports, in its own folder, ended at once when its test is over."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cli.prepare import prepare_log
from events.process.passwords import SET_UP, kafka_sign_in
from events.process.settings import Settings
from infra.launcher import Stack, processes
from infra.launcher.ports import free_block

LOG = frozenset({"kafka", "registry"})
SECURITY = Path(__file__).resolve().parents[2] / "docs" / "security.md"


@contextmanager
def running_stack(folder: Path, parts: Iterable[str] = (), *, name: str = "test", **settings: Any) -> Generator[Stack]:
    """A stack with these parts up and healthy. Its parts sign in at Kafka as what they are, the test as set-up: it may write anything."""
    with free_block() as base_port:
        stack = Stack(Settings(stack=name, base_port=base_port, data=folder, kafka_sasl_username=SET_UP, **settings))
        try:
            if parts:
                stack.up(parts)
            yield stack
        finally:
            kill_stack(stack)


def signed_in(settings: Settings, role: str) -> Settings:
    """The same stack, as `role` at its broker."""
    return settings.model_copy(update={"kafka_sasl_username": role})


def reached_from_elsewhere(settings: Settings, role: str) -> dict[str, str]:
    """What a process must be told that is to reach this stack's broker as `role`, and has another stack's ports or folder. By setting."""
    known = kafka_sign_in(signed_in(settings, role))
    return {
        "kafka_bootstrap": settings.kafka,
        "kafka_security_protocol": known.protocol,
        "kafka_sasl_mechanism": known.mechanism,
        "kafka_sasl_username": known.username,
        "kafka_sasl_password": known.password,
    }


def rows_of(head: str) -> list[list[str]]:
    """The cells of the table of `docs/security.md` with this head, row by row."""
    found = re.search(rf"^\| {re.escape(head)} \|\n\|[-|]+\n((?:\|.*\n)+)", SECURITY.read_text(), re.MULTILINE)
    assert found, f"{SECURITY} has no table with the head {head}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def local_locks(settings: Settings) -> dict[int, str]:
    """Port of a stack → its lock, as `docs/security.md` has it."""
    found: dict[int, str] = {}
    for ports, _, _, lock in rows_of("port | who listens | who may ask | lock"):
        for first, last in re.findall(r"\+(\d+)(?: … \+(\d+))?", ports):
            found |= {settings.port(offset): lock for offset in range(int(first), int(last or first) + 1)}
    return found


def listening(stack: Stack) -> dict[tuple[str, int], str]:
    """(address, port) of every socket on which a process of the stack listens, from the kernel's own tables → the command of that process."""
    members = processes.marked(stack.paths.mark)
    ours: list[Any] = [c for c in psutil.net_connections("tcp") if c.pid in members and c.status == psutil.CONN_LISTEN]
    return {(str(c.laddr[0]), int(c.laddr[1])): processes.command_of(c.pid) for c in ours}


def kill_stack(stack: Stack) -> None:
    """Ends a stack at once: nobody reads afterwards what an orderly shutdown would still write."""
    supervisor = stack.supervisor.pid()
    if supervisor is not None:
        os.kill(supervisor, signal.SIGKILL)  # first, so that it starts nothing again
    assert not processes.end_all(stack.paths.mark, gently_s=0)
    stack.down()


@contextmanager
def prepared_log(folder: Path, **settings: Any) -> Generator[Stack]:
    """Kafka and the registry, with topics and schemas."""
    with running_stack(folder, LOG, **settings) as stack:
        prepare_log(stack.settings)
        yield stack
