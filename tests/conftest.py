"""Stacks that tests share, and where a test of its own stack gets its settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from events.process.settings import Settings
from events.schema.codec import Codec
from infra.launcher import Stack
from infra.launcher.ports import free_block
from tests.support.stacks import running_stack
from tests.support.todays_codec import todays_codec

if TYPE_CHECKING:
    from tests.support.gateway_stack import GatewayStack

TESTS = Path(__file__).resolve().parent

# A busy machine must not fail a property: pytest's own time-out bounds each test.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two rows of tests that may run side by side (`--dist loadgroup`): those of the shared gateway, and those of all other stacks.

    Without workers the gateway's come last, together: Ray takes memory and time from whatever runs beside it."""
    items.sort(key=lambda item: "gateway" in getattr(item, "fixturenames", ()))
    for item in items:
        if item.path.parts[len(TESTS.parts)] in ("integration", "e2e"):
            item.add_marker(pytest.mark.xdist_group("gateway" if "gateway" in getattr(item, "fixturenames", ()) else "stacks"))


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
