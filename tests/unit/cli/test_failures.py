"""A failure of a command is two lines, what is wrong and what to do, and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from pydantic import SecretStr

from cli.admin_client import call_command_api
from cli.failures import explained_failures, kept_in_a_file
from events.log.client import LogBroken, LogMismatch, LogUnavailable
from events.process.settings import Settings
from events.schema.codec import Undecodable
from events.schema.registry import IncompatibleSchema, RegistryUnavailable
from projections.ingest.clickhouse import ClickHouseError, ClickHouseUnavailable
from rating.statement import UnknownRatingVersion


@pytest.mark.parametrize(
    ("failure", "what", "remedy"),
    [
        (LogUnavailable("no [/] broker"), "not available: LogUnavailable: no [/] broker", "start the stack"),
        (RegistryUnavailable("x"), "not available: RegistryUnavailable: x", "start the stack"),
        (ClickHouseUnavailable("x"), "not available: ClickHouseUnavailable: x", "start the stack"),
        (LogMismatch("x"), "refused: x", "docs/operations.md"),
        (IncompatibleSchema("x"), "refused: x", "docs/operations.md"),
        (ClickHouseError(62, "x"), "ClickHouse refused: code 62: x", "`modelmarket logs clickhouse`"),
        (LogBroken("x"), "not written: x", "look at what is there"),
        (Undecodable("not_framed", "x"), "unreadable: not_framed: x", "`modelmarket schemas check`"),
        (UnknownRatingVersion("x"), "refused: x", "use the release"),
    ],
)
def test_a_failure_is_printed_with_what_to_do(failure: Exception, what: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, explained_failures():
        raise failure
    first, second = capsys.readouterr().out.splitlines()
    assert (ended.value.exit_code, first) == (2, what)
    assert second.startswith(f"what to do: {remedy}")


def test_a_command_api_that_does_not_answer_is_a_failure_like_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(command_url="http://127.0.0.1:9", admin_key=SecretStr("mm_x"))
    with pytest.raises(typer.Exit) as ended:
        call_command_api(settings, None, "GET", "/v1/tenants/t")
    assert ended.value.exit_code == 2 and capsys.readouterr().out.startswith("not available: ConnectError: ")


def test_an_unexpected_failure_is_one_sentence_and_its_traceback_is_kept_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyError) as caught:
        raise KeyError("x")
    assert kept_in_a_file(caught.value) == 3
    first, second = capsys.readouterr().out.splitlines()
    (file,) = tmp_path.iterdir()
    assert (first, second) == ("unexpected: KeyError: 'x'", f"what to do: report it with the file {file}")
    assert "Traceback" in file.read_text()


def test_a_programming_error_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), explained_failures():
        raise KeyError("x")
