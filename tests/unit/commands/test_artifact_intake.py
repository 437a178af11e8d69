"""Commands that wait for the inspection of a file hold a bounded number of threads."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from commands.artifacts import intake as artifact_intake
from commands.artifacts.intake import ArtifactIntake, InspectionBusy
from events.facts.fact import TenantId
from events.facts.models import Technical, TensorSpec
from events.process.artifacts import Artifacts
from events.process.settings import Settings

ACME = TenantId("acme")
TENSOR: dict[str, Any] = {"datatype": "FP32", "shape": (-1, 4)}


def test_an_inspection_beyond_the_time_limit_or_the_queue_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 4]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", columns[:1], columns[1:])
    file = tmp_path / "model.onnx"
    file.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    artifacts = Artifacts(Settings(stack="unit", data=tmp_path))
    artifacts.put(ACME, digest, file)
    intake = ArtifactIntake(artifacts, tmp_path / "uploads")
    technical = Technical(
        format="onnx",
        framework="numpy",
        precision="FP32",
        inputs=(TensorSpec(name="x", **TENSOR),),
        outputs=(TensorSpec(name="y", **TENSOR),),
    )
    monkeypatch.setattr(artifact_intake, "CHECK_S_MAX", 0.05)
    for _ in range(artifact_intake.INSPECTIONS_MAX):
        intake._slots.acquire()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(InspectionBusy):
        intake.check(ACME, digest, technical)
    monkeypatch.setattr(artifact_intake, "CHECK_S_MAX", 20.0)
    found: list[object] = []
    capacity = artifact_intake.INSPECTIONS_MAX + artifact_intake.CHECKS_WAITING_MAX
    waiting = [threading.Thread(target=lambda: found.append(intake.check(ACME, digest, technical)), daemon=True) for _ in range(capacity)]
    for thread in waiting:
        thread.start()
    while intake._checks._value:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownMemberType]
        threading.Event().wait(0.01)
    with pytest.raises(InspectionBusy):  # at once, for twenty seconds would be too long
        intake.check(ACME, digest, technical)
    intake._slots.release()  # pyright: ignore[reportPrivateUsage]
    for thread in waiting:
        thread.join(20)
    assert [rejected for _, rejected in found] == [None] * capacity  # type: ignore[attr-defined, misc]
