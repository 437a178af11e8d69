"""One command side for all tests of the command API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.steps.command_side import (
    CommandSide,
    TenantKeys,
    new_tenant,
    running_command_side,
)


@pytest.fixture(scope="package")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandSide]:
    with running_command_side(tmp_path_factory.mktemp("commands")) as side:
        yield side


@pytest.fixture(scope="package")
def acme(side: CommandSide) -> TenantKeys:
    return new_tenant(side)
