"""At eighty columns no table cuts what it shows: ids, names and amounts are there to the last character."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cli import bill, log, producers, replay, stack
from cli.uncounted import dead_letters, record_sets, usage
from events.log.record import Coordinate
from infra.launcher.probes import ModelReplicas
from infra.launcher.status import PartStatus
from projections.bills.verify import ComparedBill, ComparedLine
from projections.dead_letters.queries import DeadLetterStatus
from projections.usage.held_records import HeldRecord
from projections.usage.producer_epochs import Epoch
from projections.usage.rebuild import Difference, Report
from rating.statement import LineKey

ROOT = Path(__file__).resolve().parents[3]
WIDTH = 80
EPOCH = "0f2c8a54-9d3e-4b6f-8a71-c5d2e9b0f134"
MODEL = "model-natural-language-processing-globex-contract-clause-extraction"
AT_US = 1_795_219_200_000_000


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """What a module's console, eighty columns wide, wrote since the fixture was made."""
    texts: dict[Any, io.StringIO] = {}
    for module in (bill, dead_letters, log, producers, replay, stack, usage):
        texts[module] = io.StringIO()
        monkeypatch.setattr(module, "console", Console(file=texts[module], width=WIDTH, force_terminal=False))
    return lambda module: texts[module].getvalue()


def cells(text: str) -> list[str]:
    """The text of each column, joined over the lines of the only row."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert all(len(line) <= WIDTH for line in text.splitlines()), text
    return ["".join(cell.strip() for cell in column) for column in zip(*(line.strip("│").split("│") for line in lines), strict=True)]


def shows(text: str, *values: str) -> None:
    found = [re.sub(r"\s", "", cell) for cell in cells(text)]
    for value in values:
        assert any(re.sub(r"\s", "", value) in cell for cell in found), (value, text)


def test_the_epochs_of_producers(monkeypatch: pytest.MonkeyPatch, printed: Callable[[Any], str]) -> None:
    epoch = Epoch("gateway-0f2c8a54", EPOCH, "open", "ray-gpu-worker-17.cluster.local", AT_US, 0, AT_US, "somebody@globex.example", "", "")

    def found(*_: Any, **__: Any) -> list[Epoch]:
        return [epoch]

    monkeypatch.setattr(producers, "epochs", found)
    producers.list_()
    shows(printed(producers), epoch.producer, epoch.host, "write-off requested by somebody@globex.example", "2026-11-21 00:00:00")
    assert EPOCH in printed(producers), "whole: `producers write-off` takes it"


def test_dead_letters_and_whose_bills_wait(monkeypatch: pytest.MonkeyPatch, printed: Callable[[Any], str]) -> None:
    at, reason = Coordinate("usage", 2, 1_041_000_000), "key and values do not belong together: " + "x" * 60
    letter = DeadLetterStatus(at, "open", "undecodable", reason, "00", 3, AT_US, "", "", "", mistaken=False, key="globex")

    def found(*_: Any) -> list[DeadLetterStatus]:
        return [letter]

    monkeypatch.setattr(dead_letters, "all_dead_letters", found)
    dead_letters.list_()
    text = printed(dead_letters)
    shows(text, f"undecodable: {reason}", "2026-11-21 00:00:00")
    assert str(at) in text
    waiting = " ".join(text.splitlines()[-2:])
    assert "bills wait of the tenants" in waiting and "globex" in waiting and "partition" not in waiting


def test_held_usage(monkeypatch: pytest.MonkeyPatch, printed: Callable[[Any], str]) -> None:
    held = HeldRecord(Coordinate("usage", 2, 1_041_000_000), "held", "globex-" * 5, "sequence_taken", EPOCH, 1, "00" * 32, AT_US)

    def found(*_: Any) -> list[HeldRecord]:
        return [held]

    monkeypatch.setattr(usage, "all_held", found)
    usage.held()
    shows(printed(usage), str(held.at), held.tenant, held.code)


def test_a_bill_and_the_amounts_that_differ(printed: Callable[[Any], str]) -> None:
    key = LineKey(MODEL, "10.20.30-release.candidate", "acme", "tokens_out", 3, 1_234_567, 1_000_000, False)
    line = ComparedLine(key, (98_765_432_109, 12_345_678_901_234), (98_765_432_108, 12_345_678_901_233))
    bill._print("globex", "2026-11", ComparedBill("issued", 3, "EUR", (line,), (), {}))  # pyright: ignore[reportPrivateUsage]
    text = printed(bill)
    shows(text, "10.20.30-release.candidate", "tokens_out", "1.234567 / 1,000,000")
    for number in ("98,765,432,109", "98,765,432,108", "12,345,678.901234", "12,345,678.901233"):
        assert re.search(rf"(?<![\d,.]){re.escape(number)}(?![\d,.])", text), text


def test_models_and_parts(printed: Callable[[Any], str]) -> None:
    model = ModelReplicas(MODEL, "10.20.30", 0, 16, "deploy_failed", "LoadFailed: unsupported_operator: " + "x" * 26)
    stack.console.print(stack.models_table([model]))
    shows(printed(stack), MODEL, "10.20.30", "deploy_failed", "0 of 16", model.detail)
    part = PartStatus(
        "clickhouse", "restarting", "its port 18003 is taken by another program of this machine", 1_234_567, 9_999 << 20, 86_399, 1_000_000
    )
    running: Any = SimpleNamespace(
        settings=SimpleNamespace(stack="local", folder="/a/folder"), parts={"clickhouse": SimpleNamespace(command=())}
    )
    console = Console(file=io.StringIO(), width=WIDTH)
    with console.capture() as captured:
        console.print(stack.table_of(running, [part]))
    text = captured.get()
    shows(text, "clickhouse", part.detail, "10485 MB", "23 h 59 min", "1000000")
    assert "1234567" in text and "restarting" in text


def test_what_differs_in_a_replay_and_in_a_set(printed: Callable[[Any], str]) -> None:
    columns = ("kafka_partition", "kafka_offset", "event_id", "tenant", "model_version")
    found = Difference(3, 1_041_000_000_000, "only_rebuilt", columns)
    replay._show(Report({3: 1}, differences=1, listed=[found]))  # pyright: ignore[reportPrivateUsage]
    shows(printed(replay), "1041000000000", "only_rebuilt", ",".join(columns))
    record = record_sets.SetRecord(Coordinate("usage", 2, 1_041_000_000_000), "00" * 32, "globex-" * 5, "sequence_taken", "counted")
    console = Console(file=io.StringIO(), width=WIDTH)
    with console.capture() as captured:
        console.print(record_sets.summary([record], "tenant"))
    shows(captured.get(), record.group, record.code, "counted", "1041000000000")


def test_the_topics(printed: Callable[[Any], str]) -> None:
    log.topics_list()
    assert "…" not in printed(log) and all(len(line) <= WIDTH for line in printed(log).splitlines())
    log.schemas_list()
    assert "…" not in printed(log) and "RecordSetDecisionRequested" in printed(log)


def test_each_table_is_made_by_the_module_that_cuts_nothing() -> None:
    found = [path.name for path in (ROOT / "cli").glob("*.py") if re.search(r"(?<!\w)Table\(", path.read_text())]
    assert found == ["tables.py"]
