"""The command side on a real log: the command API and the relay, tenants with the keys of their users, and files of models."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from onnx import TensorProto, helper, numpy_helper

from commands.store.event_store import open_store
from events.process.settings import Settings
from tests.support.command_processes import CommandClient, Process
from tests.support.polling import eventually, is_ready
from tests.support.stacks import prepared_log

ARTIFACT_MAX = 300_000


@dataclass
class CommandSide:
    settings: Settings
    http: CommandClient
    api: Process

    def end(self) -> int:
        store = open_store(self.settings)
        try:
            return store.last_position()
        finally:
            store.close()


@contextmanager
def running_command_side(folder: Path) -> Generator[CommandSide]:
    """Kafka, the registry, the command API and the relay."""
    with prepared_log(folder) as stack:
        settings = stack.settings
        api = Process("commands.api", settings, {"ARTIFACT_BYTES_MAX": str(ARTIFACT_MAX)}).start()
        relay = Process("commands.relay.relay", settings).start()
        try:
            eventually(lambda: is_ready(settings.command_port) and is_ready(settings.relay_health_port), "command side")
            yield CommandSide(settings, CommandClient(settings), api)
        finally:
            api.stop()
            relay.stop()


def model_file(bias: float = 0.0, width: int = 4) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, width])
    weight = numpy_helper.from_array(__import__("numpy").full(width, bias, "float32"), "b")
    graph = helper.make_graph([helper.make_node("Add", ["x", "b"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def technical(width: int = 4, **more: Any) -> dict[str, Any]:
    tensor = {"datatype": "FP32", "shape": [-1, width]}
    found = {
        "format": "onnx",
        "framework": "numpy",
        "precision": "FP32",
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
    }
    return {**found, **more}


COMPLIANCE = {"licence": "MIT", "data_sources": ["uci"], "data_level": "public"}


def registration(name: str, **more: Any) -> dict[str, Any]:
    return {"domain": "vision", "team": "lab", "name": name, "scenario": "post", "task": "classification", "compliance": COMPLIANCE, **more}


@dataclass
class TenantKeys:
    """A tenant with the keys of its users."""

    http: CommandClient
    tenant: str
    owner: str
    bea: str
    sam: str

    def register(self, name: str | None = None) -> str:
        return str(self.http.ok("POST", "/v1/models", self.owner, json=registration(name or f"m{uuid.uuid4().hex[:12]}"))["model"])

    def upload(self, body: bytes) -> str:
        digest = digest_of(body)
        self.http.ok("PUT", f"/v1/artifacts/{digest}", self.owner, content=body)
        return digest

    def draft(self, model: str, version: str, body: bytes, **more: Any) -> httpx.Response:
        found = {"version": version, "artifact": self.upload(body), "technical": technical(), **more}
        return self.http("POST", f"/v1/models/{model}/versions", self.owner, json=found)

    def approve(self, model: str, version: str, body: bytes) -> None:
        assert self.draft(model, version, body).status_code == 201
        self.review(model, version)

    def review(self, model: str, version: str) -> None:
        self.http.ok("POST", f"/v1/models/{model}/versions/{version}/submit", self.owner)
        for key, review in ((self.bea, "business"), (self.sam, "security")):
            path = f"/v1/models/{model}/versions/{version}/reviews"
            self.http.ok("POST", path, key, json={"review": review, "verdict": "approved"})


def new_tenant(side: CommandSide) -> TenantKeys:
    tenant = f"t{uuid.uuid4().hex[:12]}"
    side.http.ok("POST", "/v1/tenants", json={"tenant": tenant, "display_name": tenant})
    owner = side.http.key(tenant, "models", "deploy", "read", user="owner")
    bea, sam = side.http.key(tenant, "review:business", user="bea"), side.http.key(tenant, "review:security", user="sam")
    return TenantKeys(side.http, tenant, owner, bea, sam)


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["code"] == code, body
    assert body["status"] == status
    for violation in body["violations"]:
        assert violation["code"]
        assert violation["message"]
        assert violation["remedy"]
    return body
