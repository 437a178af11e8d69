"""Facts of a model's lifecycle with every member filled in, so that a test names only the members that it is about."""

from __future__ import annotations

from typing import Any

from events.facts.deployments import ServiceSpec
from events.facts.topics import FACTS

MODEL = "model-vision-core-digits"
TENSORS = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
MEMBERS: dict[str, Any] = {
    "event_id": "00000000-0000-0000-0000-000000000001",
    "occurred_at": 1_700_000_000_000_000,
    "producer": "test",
    "version": 1,
    "by": "u",
    "model": MODEL,
    "tenant": "acme",
    "owner": "o",
    "domain": "vision",
    "team": "core",
    "name": "digits",
    "scenario": "s",
    "task": "t",
    "compliance": {"licence": "MIT", "data_sources": [], "data_level": "public"},
    "technical": {"format": "onnx", "framework": "f", "precision": "FP32", "inputs": TENSORS, "outputs": TENSORS},
    "artifact": "sha256:" + "0" * 64,
    "artifact_bytes": 1,
    "review": "business",
    "verdict": "approved",
    "business_by": "b",
    "security_by": "s",
    "reason": "r",
    "model_version": "1.0.0",
    "from_version": "1.0.0",
    "to_version": "1.1.0",
    "weight_percent": 20,
    "spec": ServiceSpec(batch_max=8).model_dump(),
    "replicas": 1,
    "position": 99,
    "error_code": "broken",
    "message": "no",
    "gateway": "g",
    "epoch": "e",
    "weights": {"1.0.0": 100},
}


def body(name: str, **members: Any) -> dict[str, Any]:
    """The body of a fact of this name."""
    known = FACTS[name].cls.model_fields
    assert not members.keys() - known, f"{name} has no {members.keys() - known}"
    defaults = {k: f.get_default(call_default_factory=True) for k, f in known.items() if not f.is_required()}
    plain = {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in defaults.items()}
    return {**plain, **{k: v for k, v in MEMBERS.items() if k in known}, **members}
