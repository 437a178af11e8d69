"""Stacks of real parts for tests: each on its own ports, in its own folder, ended at once when its test is over."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli.prepare import prepare_log
from events.process.settings import Settings
from infra.launcher import Stack, processes
from infra.launcher.ports import free_block

LOG = frozenset({"kafka", "registry"})


@contextmanager
def running_stack(folder: Path, parts: Iterable[str] = (), *, name: str = "test", **settings: Any) -> Generator[Stack]:
    """A stack with these parts up and healthy."""
    with free_block() as base_port:
        stack = Stack(Settings(stack=name, base_port=base_port, data=folder, **settings))
        try:
            if parts:
                stack.up(parts)
            yield stack
        finally:
            kill_stack(stack)


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
