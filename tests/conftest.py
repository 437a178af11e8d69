"""Running stacks for the tests that need real parts: each on its own ports, in its own folder, ended by process id."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import hypothesis
import pytest

from events.process.settings import Settings
from infra.launcher import Stack
from infra.launcher.ports import free_block

# A busy machine must not fail a property: pytest's own time-out bounds each test.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture
def stack_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a stack of the test's own, not yet started."""
    with free_block() as base_port:
        yield Settings(stack="test", base_port=base_port, data=tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="session")
def log_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka, the registry and ClickHouse, shared by a whole test run: use your own topics, subjects and tables in it."""
    parts = {"kafka", "registry"}
    if importlib.util.find_spec("infra.clickhouse_local.engine"):
        parts.add("clickhouse")
    with free_block() as base_port:
        stack = Stack(Settings(stack="test", base_port=base_port, data=tmp_path_factory.mktemp("log-stack")))
        try:
            stack.up(parts)
            yield stack
        finally:
            stack.down()
