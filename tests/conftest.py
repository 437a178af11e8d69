"""Stacks that tests share, and where a test of its own stack gets its settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from events.process.settings import Settings
from events.schema.codec import Codec
from infra.launcher import Stack
from infra.launcher.ports import free_block
from tests.support.reaper import start_reaper
from tests.support.stacks import running_stack
from tests.support.todays_codec import todays_codec

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

    from tests.support.gateway_stack import GatewayStack

# xdist tells its workers a width; a console that is made at import would keep it, whatever a test sets later.
os.environ.pop("COLUMNS", None)

# A busy machine must not fail a property: pytest's own time-out bounds each test.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long rows first. Whoever runs tests that start processes has them ended, too, when a time-out ends the whole run."""
    if any(not item.nodeid.startswith(PURE) for item in items):
        start_reaper()
    order = {row: index for index, row in enumerate(LONG_ROWS)}
    items.sort(key=lambda item: order.get(_row(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Tests that share stacks are one row, on one worker: a file, or those that share a gateway. (xdist's own groups do nothing
    with pytest 9.2, which keeps a test's id elsewhere.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Rows(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _row(nodeid)

    return Rows(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tables that a test recorded (`record_property`), under their titles."""
    for report in terminalreporter.getreports("passed"):
        for title, lines in report.user_properties:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)


PURE = ("tests/unit/", "tests/tidy/")
"""Tests that start no process, or one that they end themselves."""
_GATEWAY = ("tests/integration/serving/", "tests/e2e/test_open_inference_client.py")
"""They share Ray and a gateway."""
_TABLES = "tests/integration/projections"
LONG_ROWS = (
    *("gateway", f"{_TABLES}/test_usage_pipeline.py", f"{_TABLES}/test_books.py", "tests/e2e/test_demo.py"),
    *(f"{_TABLES}/test_write_offs.py", "tests/integration/infra/test_launcher.py", "tests/integration/commands/test_relay.py"),
    *(f"{_TABLES}/test_held_usage.py", f"{_TABLES}/test_mutants.py"),
)
"""In the order in which they begin; shorter ones come after them and fill the gaps."""


_FOLDERS = ("tests/integration/commands/api",)
"""The files of each share a stack."""


def _row(nodeid: str) -> str:
    if nodeid.startswith(_GATEWAY):
        return "gateway"
    return next((folder for folder in _FOLDERS if nodeid.startswith(f"{folder}/")), nodeid.partition("::")[0])


@pytest.fixture(scope="session")
def codec() -> Codec:
    """Of today's schemas."""
    return todays_codec()


@pytest.fixture
def stack_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a stack of the test's own, not yet started."""
    with free_block() as base_port:
        yield Settings(stack="test", base_port=base_port, data=tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="session")
def log_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka and the registry, shared by a whole test run: use your own topics and subjects in it."""
    with running_stack(tmp_path_factory.mktemp("log"), {"kafka", "registry"}) as stack:
        yield stack


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayStack]:
    """A gateway with one model, shared by a whole test run: tests that change a model bring their own, or put it back."""
    from tests.support.gateway_stack import STALENESS_S_MAX, running_gateway  # imports onnx: most test runs need none

    with running_gateway(tmp_path_factory.mktemp("gateway"), region="hefei", staleness_s_max=STALENESS_S_MAX) as gateway:
        yield gateway
