"""Text from other people is printed as it is: brackets in it are not read as markup of the terminal and hide nothing."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from cli import dead_letters, producers
from events.log.record import Coordinate
from projections.dead_letters.queries import DeadLetterStatus
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
