"""An alert is said once, anew when something else is to be done, and resolved by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from events.facts.alerts import AlertRaised, AlertResolved
from events.process.settings import Settings
from events.schema.codec import Codec, Schema, SchemaSet, todays_schemas
from serving.control.alerting import Alerts
from serving.control.controller import Controller, Voice
from serving.control.ray_rest import AppState
from serving.gateway.routes import Version
from serving.model_interface import Interface


class Paper:
    """Takes what a log would."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.said: list[tuple[str, str, str, str]] = []
        self.frames: list[bytes | None] = []

    def append(self, topic: str, key: bytes, value: bytes, headers: Mapping[str, bytes]) -> None:
        self.frames.append(value)
        fact = self._codec.fact(value)
        assert isinstance(fact, AlertRaised | AlertResolved)
        assert (topic, key, headers["ce_type"]) == ("alerts", fact.subject.encode(), type(fact).__name__.encode())
        self.said.append(
            (type(fact).__name__[5:], fact.subject, fact.rule, fact.raised if isinstance(fact, AlertResolved) else fact.event_id)
        )


@pytest.fixture
def paper() -> Paper:
    schemas = SchemaSet()
    for schema_id, (subject, definition) in enumerate(sorted(todays_schemas().items()), start=100):
        schemas.add(Schema.of(schema_id, subject, definition))
    return Paper(Codec(schemas))


@pytest.fixture
def alerts(paper: Paper) -> Alerts:
    writer: Any = paper
    return Alerts("controller", writer, paper._codec)  # pyright: ignore[reportPrivateUsage]


def test_an_alert_is_said_once_and_its_end_names_it(alerts: Alerts, paper: Paper) -> None:
    for position in range(3):
        alerts.raise_("controller", "behind", f"at {position}", "wait")
    alerts.resolve("controller", "behind")
    alerts.resolve("controller", "behind")
    (raised, resolved) = paper.said
    assert raised[:3] == ("Raised", "controller", "behind") and resolved == ("Resolved", *raised[1:])


def test_a_version_is_reported_only_by_a_round_that_knew_it_was_asked_for(alerts: Alerts, paper: Paper, tmp_path: Path) -> None:
    """A round that began before a rollback would speak of the deployment before it, and folds would not listen."""
    writer: Any = paper
    codec, controller = paper._codec, Controller(Settings(stack="unit", data=tmp_path))  # pyright: ignore[reportPrivateUsage]
    version = Version("model-a-b-c", "1.0.0", "acme", Interface((), ()), "sha256:0", "onnx", {}, deployed=True, since=7)
    running, frames = AppState("RUNNING", "", 1), list[bytes]()
    writer.append = lambda topic, key, value, headers: frames.append(value)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert controller._report(version, running, 6, Voice(writer, codec, alerts)) is True  # pyright: ignore[reportPrivateUsage]
    assert frames == []
    assert controller._report(version, running, 7, Voice(writer, codec, alerts)) is False  # pyright: ignore[reportPrivateUsage]
    assert [codec.decode(f)[0] for f in frames] == ["VersionReady"]


def test_another_remedy_is_another_alert(alerts: Alerts, paper: Paper) -> None:
    alerts.raise_("controller", "mass_removal", "3 of 10", "approve 42")
    alerts.raise_("controller", "mass_removal", "4 of 10", "approve 57")
    assert [said[0] for said in paper.said] == ["Raised", "Resolved", "Raised"]
    assert paper.said[0][3] == paper.said[1][3] != paper.said[2][3]


def test_those_that_recovered_are_resolved_and_the_others_stay(alerts: Alerts, paper: Paper) -> None:
    for subject in ("a", "b", "c"):
        alerts.raise_(subject, "deploy_failed", "", "mend it")
    alerts.raise_("a", "other", "", "")
    paper.said.clear()
    alerts.resolve_others("deploy_failed", frozenset({"b"}))
    assert [said[:3] for said in paper.said] == [("Resolved", "a", "deploy_failed"), ("Resolved", "c", "deploy_failed")]


def test_who_is_started_again_ends_what_it_said_before_and_says_nothing_twice(alerts: Alerts, paper: Paper) -> None:
    alerts.raise_("controller", "behind", "", "wait")
    alerts.resolve("controller", "behind")
    alerts.raise_("controller", "mass_removal", "3 of 10", "approve 42")
    alerts.raise_("model-a", "deploy_failed", "", "mend it")
    writer: Any = paper
    again, other = (Alerts(who, writer, paper._codec) for who in ("controller", "gateway"))  # pyright: ignore[reportPrivateUsage]
    before = [b"garbage", None, *paper.frames]
    for one in (again, other):
        one.take_up(before)
    paper.said.clear()
    other.resolve_other_rules("controller", "")
    again.raise_("model-a", "deploy_failed", "", "mend it")
    again.resolve_other_rules("controller", "mass_removal")
    assert paper.said == []
    again.resolve_other_rules("controller", "")
    assert [said[:3] for said in paper.said] == [("Resolved", "controller", "mass_removal")]
