"""Text from other people is printed as it is: brackets in it are not read as markup of the terminal and hide nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from cli import producers
from cli.app import Subjects, app
from cli.uncounted import dead_letters, usage
from cli.uncounted.dead_letter_sets import filter_of
from events.log.record import Coordinate
from projections.dead_letters.queries import EVERY, DeadLetterFilter, DeadLetterStatus
from projections.usage.held_records import HeldRecord
from projections.usage.producer_epochs import Epoch

HOSTILE = "refused_by_table: [/bold] at [red]row[/x] 1"


def test_a_dead_letter_cannot_hide_the_list_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters.console, "width", 200)
    letter = DeadLetterStatus(Coordinate("usage", 2, 7), "requested", "code", HOSTILE, "00", 3, 1, "an[/]admin", "", "", mistaken=False)

    def found(*_: Any) -> list[DeadLetterStatus]:
        return [letter]

    monkeypatch.setattr(dead_letters, "all_dead_letters", found)
    printed = CliRunner().invoke(dead_letters.app, ["list"])
    assert printed.exit_code == 0 and HOSTILE in printed.output and "an[/]admin" in printed.output, printed.output


def test_a_producer_cannot_hide_the_list_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers.console, "width", 200)
    epoch = Epoch("gateway[/]", "e-1", "open", "a[/bold]host", 1, 0, 0, "", "", "")

    def found(*_: Any, **__: Any) -> list[Epoch]:
        return [epoch]

    monkeypatch.setattr(producers, "epochs", found)
    printed = CliRunner().invoke(producers.app, ["list"])
    assert printed.exit_code == 0 and "gateway[/]" in printed.output and "a[/bold]host" in printed.output, printed.output
    ended = CliRunner().invoke(producers.app, ["write-off", "e-1", "--reason", "r"])
    assert "gateway[/]" in ended.output, ended.output


def test_a_filter_is_what_was_written_or_refused() -> None:
    assert filter_of(None) == filter_of([]) == EVERY
    written = ["topic=usage", "partition=2", "code=not_framed", "tenant=a=b", "from_offset=0", "to_offset=9", "since=2026-11-21"]
    assert filter_of([*written, "until=2026-11-21T10:00+02:00"]) == DeadLetterFilter(
        "usage", 2, "not_framed", "a=b", 0, 9, since_us=1_795_219_200_000_000, until_us=1_795_248_000_000_000
    )
    wrong = ["topic=usages", "partition=-1", "partition=", "code=", "offset=1", "since=today", "record_set=" + "0" * 64, "topic"]
    for term in wrong:
        with pytest.raises(typer.BadParameter):
            filter_of([term])
    with pytest.raises(typer.BadParameter, match="twice"):
        filter_of(["tenant=a", "tenant=b"])


def test_held_usage_is_chosen_by_a_filter_and_never_all_of_it_by_mistake() -> None:
    wrong = (
        ["count", "--reason", "r"],
        ["dismiss", "--reason", "r", "--where", "code=unknown"],
        ["count", "--reason", "r", "--where", "topic=usage"],
        ["held", "--code", "unknown"],
        ["approve", "usage/2/7"],
    )
    for words in wrong:
        refused = CliRunner().invoke(usage.app, words, env={"COLUMNS": "80"})
        assert refused.exit_code == 2, (words, refused.output)


def test_a_table_of_held_usage_fits_eighty_columns_and_shows_what_others_wrote_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage.console, "width", 80)
    held = HeldRecord(Coordinate("usage", 2, 1_041_000), "held", "t[/]enant", "epoch_unknown", "e", 1, "00" * 32, 1_795_219_200_000_000)

    def found(*_: Any) -> list[HeldRecord]:
        return [held]

    monkeypatch.setattr(usage, "all_held", found)
    printed = CliRunner().invoke(usage.app, ["held"])
    assert printed.exit_code == 0, printed.output
    (line,) = (line for line in printed.output.splitlines() if "usage/2/1041000" in line)
    for shown in ("t[/]enant", "epoch_unknown", "held", "2026-11-21 00:00:00"):
        assert shown in line, printed.output


def test_status_imports_no_client_that_it_does_not_ask() -> None:
    """They take longer to import than `status` may take to answer on a busy machine."""
    program = "import sys, cli.app, cli.stack; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "infra.launcher.status" in modules
    assert not {"confluent_kafka", "fastavro", "httpx", "clickhouse_connect", "numpy", "fastapi", "ray"} & set(modules)


def test_each_command_of_the_table_is_there() -> None:
    group = get_command(app)
    assert isinstance(group, Subjects)
    names = group.list_commands(None)
    assert [found.name for found in (group.get_command(None, name) for name in names)] == names
    assert group.get_command(None, "stat") is None
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
