"""A failure of a command is two lines, what is wrong and what to do, and an exit code."""

from __future__ import annotations

import httpx
import pytest
import typer

from cli.failures import explained_failures
from events.log.client import LogMismatch, LogUnavailable
from events.schema.registry import IncompatibleSchema, RegistryUnavailable
from projections.ingest.clickhouse import ClickHouseUnavailable


@pytest.mark.parametrize(
    ("failure", "what", "remedy"),
    [
        (LogUnavailable("no [/] broker"), "not available: LogUnavailable: no [/] broker", "start the stack"),
        (RegistryUnavailable("x"), "not available: RegistryUnavailable: x", "start the stack"),
        (ClickHouseUnavailable("x"), "not available: ClickHouseUnavailable: x", "start the stack"),
        (httpx.ConnectError("x"), "not available: ConnectError: x", "start the stack"),
        (LogMismatch("x"), "refused: x", "docs/operations.md"),
        (IncompatibleSchema("x"), "refused: x", "docs/operations.md"),
    ],
)
def test_a_failure_is_printed_with_what_to_do(failure: Exception, what: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, explained_failures():
        raise failure
    first, second = capsys.readouterr().out.splitlines()
    assert (ended.value.exit_code, first) == (2, what)
    assert second.startswith(f"what to do: {remedy}")


def test_our_own_mistake_is_not_hidden_by_a_sentence() -> None:
    with pytest.raises(KeyError), explained_failures():
        raise KeyError("x")
