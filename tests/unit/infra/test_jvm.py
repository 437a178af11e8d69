"""The broker's storage is formatted, or `up` says why it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from events.process.settings import Settings
from infra.launcher import LaunchFailed, jvm
from infra.launcher.paths import paths_of


@pytest.mark.parametrize(
    ("program", "s_max", "reason"),
    [("echo no space left; exit 1", 60, "no space left"), ("exec sleep 60", 0.2, "it did not end within 0.2 s")],
    ids=["it fails", "it does not end"],
)
def test_a_format_that_fails_or_does_not_end_is_reported_with_its_last_lines(
    program: str, s_max: float, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{program}\n")
    java.chmod(0o700)
    monkeypatch.setattr(jvm, "java", lambda: str(java))
    monkeypatch.setattr(jvm, "kafka_classpath", lambda: "")
    monkeypatch.setattr(jvm, "classes_file", lambda part: tmp_path / part)
    monkeypatch.setattr(jvm, "FORMAT_S_MAX", s_max)
    settings = Settings(data=tmp_path / "data")
    with pytest.raises(LaunchFailed) as failed:
        jvm.prepare_kafka(settings, paths_of(settings))
    assert failed.value.code == "kafka-format-failed"
    assert reason in failed.value.log_tail
