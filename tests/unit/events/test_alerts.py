"""An alert is raised once, raised anew when its remedy changes, and resolved by its event id."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from events.alerts.alerts import Alerts
from events.alerts.fact_publisher import FactPublisher
from events.schema.codec import Codec
from serving.control.serve_rest import AppStatus
from serving.control.version_reports import REPEATED_S, VersionReports
from serving.gateway.served_models import Version
from serving.model_interface import Interface
from tests.support.todays_codec import RecordedLog


@pytest.fixture
def log(codec: Codec) -> RecordedLog:
    return RecordedLog(codec)


@pytest.fixture
def alerts(log: RecordedLog) -> Alerts:
    writer: Any = log
    return Alerts("controller", FactPublisher(writer, log._codec))  # pyright: ignore[reportPrivateUsage]


def test_an_alert_is_raised_once_and_its_resolution_names_it(alerts: Alerts, log: RecordedLog) -> None:
    for position in range(3):
        alerts.raise_("controller", "behind", f"at {position}", "wait")
    alerts.resolve("controller", "behind")
    alerts.resolve("controller", "behind")
    (raised, resolved) = log.written
    assert raised[:3] == ("Raised", "controller", "behind") and resolved == ("Resolved", *raised[1:])


def test_a_version_is_reported_only_by_a_round_that_knew_it_was_asked_for(log: RecordedLog) -> None:
    """A round that began before a rollback reports on the earlier deployment, and folds ignore such a report."""
    writer: Any = log
    codec = log._codec  # pyright: ignore[reportPrivateUsage]
    version = Version("m", "1.0.0", "m-v1.0.0", "acme", Interface((), ()), "sha256:0", "onnx", deployed=True, since=7)
    running, frames = AppStatus("RUNNING", "", 1), list[bytes]()
    writer.append = lambda topic, key, value, headers: frames.append(value)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    reports = VersionReports("controller", FactPublisher(writer, codec))
    assert reports.report(version, running, 6) is True
    assert frames == []
    assert reports.report(version, running, 7) is False
    assert [codec.decode(f)[0] for f in frames] == ["VersionReady"]


def test_what_another_program_said_of_a_version_is_contradicted_within_half_a_minute(log: RecordedLog) -> None:
    writer: Any = log
    codec = log._codec  # pyright: ignore[reportPrivateUsage]
    version = Version("m", "1.0.0", "m-v1.0.0", "acme", Interface((), ()), "sha256:0", "onnx", deployed=True, since=7)
    running, frames, now = AppStatus("RUNNING", "", 1), list[bytes](), [100.0]
    writer.append = lambda topic, key, value, headers: frames.append(value)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    reports = VersionReports("controller", FactPublisher(writer, codec), lambda: now[0])
    reports.report(version, running, 7)
    forged = replace(version, ready=False, failure=("load_failed", "says who?"))
    now[0] += REPEATED_S / 2
    reports.report(forged, running, 8)
    assert len(frames) == 1, "the fold may not have read the report yet"
    now[0] += REPEATED_S / 2
    reports.report(forged, running, 9)
    assert [codec.decode(f)[0] for f in frames] == ["VersionReady"] * 2


def test_another_remedy_is_another_alert(alerts: Alerts, log: RecordedLog) -> None:
    alerts.raise_("controller", "mass_removal", "3 of 10", "approve 42")
    alerts.raise_("controller", "mass_removal", "4 of 10", "approve 57")
    assert [written[0] for written in log.written] == ["Raised", "Resolved", "Raised"]
    assert log.written[0][3] == log.written[1][3] != log.written[2][3]


def test_those_that_recovered_are_resolved_and_the_others_stay(alerts: Alerts, log: RecordedLog) -> None:
    for subject in ("a", "b", "c"):
        alerts.raise_(subject, "deploy_failed", "", "mend it")
    alerts.raise_("a", "other", "", "")
    log.written.clear()
    alerts.resolve_other_subjects("deploy_failed", frozenset({"b"}))
    assert [written[:3] for written in log.written] == [("Resolved", "a", "deploy_failed"), ("Resolved", "c", "deploy_failed")]


def test_a_restarted_controller_resolves_what_it_raised_before_and_raises_nothing_twice(alerts: Alerts, log: RecordedLog) -> None:
    alerts.raise_("controller", "behind", "", "wait")
    alerts.resolve("controller", "behind")
    alerts.raise_("controller", "mass_removal", "3 of 10", "approve 42")
    alerts.raise_("model-a", "deploy_failed", "", "mend it")
    writer: Any = log
    again, other = (Alerts(who, FactPublisher(writer, log._codec)) for who in ("controller", "gateway"))  # pyright: ignore[reportPrivateUsage]
    before = [b"garbage", None, *log.frames]
    for one in (again, other):
        one.restore(log._codec, before)  # pyright: ignore[reportPrivateUsage]
    log.written.clear()
    other.resolve_other_rules("controller", "")
    again.raise_("model-a", "deploy_failed", "", "mend it")
    again.resolve_other_rules("controller", "mass_removal")
    assert log.written == []
    again.resolve_other_rules("controller", "")
    assert [written[:3] for written in log.written] == [("Resolved", "controller", "mass_removal")]
