"""The command API over HTTP on a real log: the whole lifecycle of a model, and malformed and hostile requests."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from access.codes import KEY_MALFORMED, KEY_MISSING
from commands.store.event_store import open_store
from events.facts.bills import BILL_COUNTERS
from events.log.client import Reader
from events.log.schemas import open_codec
from events.process.settings import Settings
from rating.bill import Bill
from tests.support.command_processes import ADMIN, ROOT, CommandClient, Process, environment
from tests.support.decided_log import check_complete, read_log
from tests.support.polling import eventually, health, is_ready
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


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandSide]:
    with prepared_log(tmp_path_factory.mktemp("commands")) as stack:
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


@pytest.fixture(scope="module")
def acme(side: CommandSide) -> TenantKeys:
    return new_tenant(side)


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


def test_the_whole_lifecycle_of_a_model_is_on_the_log_in_the_order_of_the_answers(side: CommandSide, acme: TenantKeys) -> None:
    http, model = side.http, acme.register()
    acme.approve(model, "1.0.0", model_file(1))
    acme.approve(model, "1.1.0", model_file(2))
    decided: list[dict[str, Any]] = []
    for method, path, body in (
        ("POST", "deployments", {"version": "1.0.0"}),
        ("POST", "rollouts", {"version": "1.1.0", "weight_percent": 20}),
        ("POST", "rollouts/advance", {"weight_percent": 50}),
        ("POST", "promote", None),
        ("POST", "rollback", {"reason": "slow"}),
        ("DELETE", "deployments/1.1.0", None),
        ("POST", "retire", {"reason": "old", "successor": "model-vision-lab-next"}),
    ):
        answer = http(method, f"/v1/models/{model}/{path}", acme.owner, json=body, headers={"X-Correlation-Id": "story"})
        assert answer.status_code in (200, 201), answer.text
        assert answer.headers["X-Correlation-Id"] == "story"
        decided += answer.json()["facts"]
        assert answer.headers["etag"] == f'"{decided[-1]["version"]}"'
    names = [
        "VersionDeployed",
        "RolloutStarted",
        "RolloutAdvanced",
        "RolloutPromoted",
        "RolledBack",
        "VersionUndeployed",
        "ModelRetired",
        "VersionUndeployed",
    ]
    assert [f["name"] for f in decided] == names
    eventually(lambda: (found := health(side.settings.relay_health_port)) and found["position"] >= decided[-1]["position"], "relayed")
    records = check_complete(side.settings).records
    reader = Reader(side.settings, "oracle")
    codec, _ = open_codec(side.settings, reader)
    reader.close()
    for fact in decided:
        record = records[fact["position"]]
        name, body = codec.decode(record.value)
        assert (name, body["event_id"], body["version"], body["correlation_id"]) == (
            fact["name"],
            fact["event_id"],
            fact["version"],
            "story",
        )
        assert record.key == model.encode()
        assert record.headers["ce_type"] == name.encode()
    problem(http("POST", f"/v1/models/{model}/deployments", acme.owner, json={"version": "1.0.0"}), 410, "model_retired")
    problem(http("POST", "/v1/models", acme.owner, json=registration(model.rsplit("-", 1)[1])), 409, "name_taken")


def test_every_violation_of_the_description_comes_at_once(side: CommandSide, acme: TenantKeys) -> None:
    body = problem(
        side.http(
            "POST", "/v1/models", acme.owner, json={"domain": "Vision!", "team": "lab", "name": "digits-v2", "x": 1, "compliance": {}}
        ),
        422,
        "string_pattern_mismatch",
    )
    fields = {v["field"] for v in body["violations"]}
    assert fields == {"domain", "name", "scenario", "task", "x", "compliance.licence", "compliance.data_sources", "compliance.data_level"}
    wrong = {"version": "1", "artifact": "sha256:x", "technical": {"format": "pickle", "framework": "f", "precision": "FP32", "inputs": []}}
    body = problem(side.http("POST", f"/v1/models/{acme.register()}/versions", acme.owner, json=wrong), 422, "literal_error")
    assert next(v["code"] for v in body["violations"] if v["field"] == "version") == "version_not_semver"
    found = {v["field"]: v["message"] for v in body["violations"]}
    assert found["technical.inputs"] == "input format definition missing"
    assert found["technical.outputs"] == "output format definition missing"
    assert set(found) == {"version", "artifact", "technical.format", "technical.inputs", "technical.outputs"}


def test_malformed_and_hostile_requests_are_refused_with_a_remedy_and_change_nothing(side: CommandSide, acme: TenantKeys) -> None:
    http, model = side.http, acme.register()
    deep, before = b"[" * 100_000, side.end()
    half = b'{"domain": "\\ud800", "\\udfff": 1}'
    for content in (
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        deep,
        half,
        b"\xff\xfe",
        b'{"domain": 1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"domain": NaN}',
    ):
        answer = http("POST", "/v1/models", acme.owner, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), (content[:40], answer.text)
        problem(answer, answer.status_code, answer.json()["code"])
    huge = json.dumps(registration("huge", description="x" * (2 << 20))).encode()
    problem(http("POST", "/v1/models", acme.owner, content=huge, headers={"Content-Type": "application/json"}), 413, "body_too_large")

    def chunks() -> Iterator[bytes]:  # no Content-Length to believe
        for _ in range(40):
            yield b" " * 65536

    problem(http("POST", "/v1/models", acme.owner, content=chunks(), headers={"Content-Type": "application/json"}), 413, "body_too_large")
    for field, value in (
        ("tags", [1]),
        ("tags", "a"),
        ("description", {}),
        ("compliance", []),
        ("domain", "a" * 41),
        ("domain", "a-b"),
        ("owner", None),
    ):
        answer = http("POST", "/v1/models", acme.owner, json=registration("odd", **{field: value}))
        assert answer.status_code == 422, (field, answer.text)
    for path in ("%00", "a%00b", "..%2F..", "x" * 3000, "%ff", "Model"):
        for method, tail in (("GET", ""), ("POST", "/submit"), ("POST", "/versions/1/submit"), ("POST", "/promote")):
            answer = http(method, f"/v1/models/{path}{tail}", acme.owner)
            assert answer.status_code in (404, 405, 422), (path, answer.text)
    for headers, code in (
        ({"Idempotency-Key": "a b"}, "idempotency_key_malformed"),
        ({"Idempotency-Key": "k" * 256}, "idempotency_key_malformed"),
        ({"If-Match": "W/abc"}, "if_match_malformed"),
    ):
        problem(http("POST", f"/v1/models/{model}/promote", acme.owner, headers=headers), 400, code)
    problem(http("PATCH", f"/v1/models/{model}", acme.owner), 405, "method_not_allowed")
    problem(http("GET", "/nowhere", acme.owner), 404, "no_such_resource")
    for weight in (0, 100, -1, 2**63 - 1, 2**70, 1.5, "many"):
        assert (
            http("POST", f"/v1/models/{model}/rollouts", acme.owner, json={"version": "1.0.0", "weight_percent": weight}).status_code == 422
        )
    assert side.end() == before


def invalid_files() -> dict[str, tuple[bytes, str]]:
    good = model_file()
    external = onnx.load_from_string(model_file())
    tensor = external.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    hidden = onnx.load_from_string(model_file())
    attribute = hidden.graph.node[0].attribute.add()
    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    attribute.t.name, attribute.t.data_type, attribute.t.data_location = "t", TensorProto.FLOAT, TensorProto.EXTERNAL
    future = onnx.load_from_string(model_file())
    future.opset_import[0].version = 9999
    foreign = onnx.load_from_string(model_file())
    foreign.opset_import.add(domain="evil.ops", version=1)
    broken = onnx.load_from_string(model_file())
    broken.graph.node[0].input[1] = "nothing"
    pickle = b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."
    return {
        "empty": (b"", "artifact_not_onnx"),
        "pickle": (pickle, "artifact_not_onnx"),
        "text": (b"not a model" * 100, "artifact_not_onnx"),
        "truncated": (good[:-7], "artifact_not_onnx"),
        "external data": (external.SerializeToString(), "external_data"),
        "external data in an attribute": (hidden.SerializeToString(), "external_data"),
        "operators of the future": (future.SerializeToString(), "opset_unknown"),
        "operators of another vendor": (foreign.SerializeToString(), "opset_unknown"),
        "a graph that does not fit together": (broken.SerializeToString(), "artifact_invalid"),
    }


def test_an_invalid_upload_is_refused_and_leaves_no_file(side: CommandSide, acme: TenantKeys) -> None:
    http, folder = side.http, side.settings.folder
    acme.upload(model_file())
    before = sorted(p for p in folder.rglob("*") if "artifacts" in p.parts or "uploads" in p.parts)
    for what, (body, code) in invalid_files().items():
        answer = http("PUT", f"/v1/artifacts/{digest_of(body)}", acme.owner, content=body)
        assert answer.status_code == 422, (what, answer.text)
        assert answer.json()["code"] == code, (what, answer.text)
    good = model_file(3)
    problem(http("PUT", f"/v1/artifacts/{digest_of(good)}", acme.owner, content=good[:-1]), 422, "digest_mismatch")
    problem(http("PUT", "/v1/artifacts/sha256:zz", acme.owner, content=good), 422, "digest_malformed")
    big = model_file(width=ARTIFACT_MAX)
    problem(http("PUT", f"/v1/artifacts/{digest_of(big)}", acme.owner, content=big), 413, "artifact_too_large")
    assert sorted(p for p in folder.rglob("*") if "artifacts" in p.parts or "uploads" in p.parts) == before


def test_a_version_must_be_described_as_its_file_is(side: CommandSide, acme: TenantKeys) -> None:
    model, digest = acme.register(), acme.upload(model_file(5))

    def add(**more: Any) -> httpx.Response:
        return side.http(
            "POST",
            f"/v1/models/{model}/versions",
            acme.owner,
            json={"version": "1.0.0", "artifact": digest, "technical": technical(), **more},
        )

    problem(add(technical=technical(5)), 422, "description_differs")
    other = [{"name": "z", "datatype": "FP32", "shape": [-1, 4]}]
    found = problem(add(technical=technical(inputs=other)), 422, "description_differs")
    assert "the file has no input 'z', it has x" in found["detail"]
    problem(add(technical=technical(outputs=[{"name": "y", "datatype": "INT64", "shape": [-1, 4]}])), 422, "description_differs")
    problem(add(artifact="sha256:" + "0" * 64), 422, "artifact_missing")
    problem(add(lineage={"parents": ["model-vision-lab-nothing-v1.0.0"]}), 422, "parent_unknown")
    assert add().status_code == 201
    assert add(version="1.1.0", lineage={"parents": ["1.0.0", f"{model}-v1.0.0"]}).status_code == 201
    problem(add(), 409, "version_exists")


def test_a_file_that_cannot_be_loaded_is_refused_before_anybody_reviews_it(side: CommandSide, acme: TenantKeys) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("x", "y")]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.microsoft")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_model(
        helper.make_graph([node], "g", tensors[:1], tensors[1:]), opset_imports=opsets, ir_version=8
    ).SerializeToString()
    model = acme.register()
    assert acme.draft(model, "1.0.0", body).status_code == 201
    refusal = problem(side.http("POST", f"/v1/models/{model}/versions/1.0.0/submit", acme.owner), 422, "artifact_not_loadable")
    assert "operators that ONNX Runtime has" in refusal["remedy"]
    assert side.http.ok("GET", f"/v1/models/{model}", acme.owner)["versions"]["1.0.0"]["kind"] == "draft"


def test_another_tenants_models_are_unknown_and_cannot_be_changed(side: CommandSide, acme: TenantKeys) -> None:
    http, globex, model = side.http, new_tenant(side), acme.register()
    acme.approve(model, "1.0.0", model_file(6))
    digest = digest_of(model_file(6))
    end = side.end()
    problem(http("GET", f"/v1/models/{model}", globex.owner), 404, "model_unknown")
    for path, body in (
        ("versions", {"version": "2.0.0", "artifact": digest, "technical": technical()}),
        ("versions/1.0.0/submit", None),
        ("deployments", {"version": "1.0.0"}),
        ("rollouts", {"version": "1.0.0", "weight_percent": 5}),
        ("rollouts/advance", {"weight_percent": 5}),
        ("promote", None),
        ("rollback", {"reason": "r"}),
        ("retire", {"reason": "r"}),
    ):
        problem(http("POST", f"/v1/models/{model}/{path}", globex.owner, json=body), 404, "model_unknown")
    mine = globex.register()
    version = {"version": "1.0.0", "artifact": digest, "technical": technical()}
    problem(http("POST", f"/v1/models/{mine}/versions", globex.owner, json=version), 422, "artifact_missing")
    problem(http("POST", "/v1/models", globex.owner, json=registration("theirs", tenant=acme.tenant)), 403, "tenant_foreign")
    problem(http("PUT", f"/v1/artifacts/{digest}?tenant={acme.tenant}", globex.owner, content=model_file(6)), 403, "tenant_foreign")
    problem(http("GET", f"/v1/bills/{acme.tenant}", globex.owner), 404, "tenant_unknown")
    problem(http("GET", f"/v1/tenants/{acme.tenant}", globex.owner), 404, "tenant_unknown")
    assert side.end() == end + 1  # globex's own registration


def test_a_foreign_version_may_be_a_parent_once_it_is_approved_and_foreign_drafts_cannot_be_guessed(
    side: CommandSide, acme: TenantKeys
) -> None:
    globex, theirs = new_tenant(side), acme.register()
    mine, lineage = globex.register(), {"parents": [f"{theirs}-v1.0.0"]}
    assert acme.draft(theirs, "1.0.0", model_file(8)).status_code == 201
    problem(globex.draft(mine, "1.0.0", model_file(9), lineage=lineage), 422, "parent_unknown")
    acme.review(theirs, "1.0.0")
    assert globex.draft(mine, "1.0.0", model_file(9), lineage=lineage).status_code == 201


def test_a_price_that_no_bill_could_hold_is_refused_with_what_was_meant(side: CommandSide, acme: TenantKeys) -> None:
    dear = [{"model": "*", "meter": "cpu_us", "amount_micros": 20_000_000}]
    found = problem(side.http("POST", "/v1/price-books/dear/versions", json={"prices": dear}), 422, "price_too_high")
    assert "per_units 3600000000" in found["remedy"] and found["field"] == "prices.0"
    dear[0]["per_units"] = 3_600_000_000
    unmeasured = [*dear, {"model": "*", "meter": "gpu_us", "amount_micros": 1}]
    found = problem(side.http("POST", "/v1/price-books/dear/versions", json={"prices": unmeasured}), 422, "meter_not_measured")
    assert found["field"] == "prices.1"
    assert side.http("POST", "/v1/price-books/dear/versions", json={"prices": dear}).status_code == 201


def test_a_key_works_as_its_scopes_allow_and_not_after_its_revocation(side: CommandSide, acme: TenantKeys) -> None:
    http = side.http
    for header, refusal in (({}, KEY_MISSING), ({"Authorization": ""}, KEY_MISSING), ({"Authorization": "Basic x"}, KEY_MALFORMED)):
        answer = httpx.get(f"{side.settings.commands}/v1/models/m", headers=header)
        problem(answer, 401, refusal.code)
        assert answer.headers["www-authenticate"] == refusal.challenge
    problem(http("GET", "/v1/models/m", "mm_unknown"), 401, "key_unknown")
    caller = http.key(acme.tenant, "invoke", user="caller")
    problem(http("GET", "/v1/models/m", caller), 403, "scope_missing")
    for path, body in (
        ("/v1/tenants", {"tenant": "x", "display_name": "x"}),
        ("/v1/price-books/p/versions", {"prices": [{"model": "*", "meter": "calls", "amount_micros": 1}]}),
        (f"/v1/bills/{acme.tenant}/2026-01/cut", None),
        (f"/v1/tenants/{acme.tenant}/keys", {"scopes": ["admin"]}),
    ):
        problem(http("POST", path, acme.owner, json=body), 403, "scope_missing")
    issued = http.ok("POST", f"/v1/tenants/{acme.tenant}/keys", json={"scopes": ["models"]})
    assert http("GET", f"/v1/models/{acme.register()}", issued["api_key"]).status_code == 200
    http.ok("DELETE", f"/v1/tenants/{acme.tenant}/keys/{issued['key_id']}?reason=leaked")
    problem(http("GET", "/v1/models/m", issued["api_key"]), 401, "key_revoked")
    problem(http("DELETE", f"/v1/tenants/{acme.tenant}/keys/{issued['key_id']}"), 409, "already_revoked")


def _keyholders(side: CommandSide) -> tuple[str, str]:
    """Two admins of one tenant."""
    side.http.ok("POST", "/v1/tenants", json={"tenant": "platform-keys", "display_name": "two admins"})
    return "first", "second"


def test_a_new_key_is_shown_again_to_whoever_asked_and_is_nowhere_in_the_store(side: CommandSide, acme: TenantKeys) -> None:
    def issue(key: str, caller: str = ADMIN) -> httpx.Response:
        return side.http("POST", f"/v1/tenants/{acme.tenant}/keys", caller, json={"scopes": ["invoke"]}, headers={"Idempotency-Key": key})

    repeat = uuid.uuid4().hex
    first, again = issue(repeat), issue(repeat)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    secret = first.json()["api_key"]
    assert issue(uuid.uuid4().hex).json()["api_key"] != secret
    # Another admin of the same tenant could only be shown a key that opens nothing.
    ours = [side.http.key("platform-keys", "admin", user=user) for user in _keyholders(side)]
    mine, theirs = issue(other := uuid.uuid4().hex, ours[0]), issue(other, ours[1])
    assert (mine.status_code, theirs.status_code, theirs.json()["code"]) == (201, 422, "idempotency_key_reused")
    assert issue(other, ours[0]).json()["api_key"] == mine.json()["api_key"]
    kept = b"".join(p.read_bytes() for p in Path(side.settings.folder, "store").iterdir())
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in kept
    assert secret.encode() not in kept
    assert secret.encode() not in side.api.log.read_bytes()


def test_one_idempotency_key_is_one_command_for_each_tenant(side: CommandSide, acme: TenantKeys) -> None:
    globex, repeat, name = new_tenant(side), uuid.uuid4().hex, f"m{uuid.uuid4().hex[:12]}"
    headers = {"Idempotency-Key": repeat}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: side.http("POST", "/v1/models", acme.owner, json=registration(name), headers=headers), range(24)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.text for a in answers}) == 1
    problem(
        side.http("POST", "/v1/models", acme.owner, json=registration(name, description="other"), headers=headers),
        422,
        "idempotency_key_reused",
    )
    assert side.http("POST", "/v1/models", globex.owner, json=registration(f"g{name}"), headers=headers).status_code == 201


def test_an_etag_protects_against_deciding_on_an_old_state(side: CommandSide, acme: TenantKeys) -> None:
    model = acme.register()
    acme.approve(model, "1.0.0", model_file(7))
    etag = side.http("GET", f"/v1/models/{model}", acme.owner).headers["etag"]
    deploy = {"json": {"version": "1.0.0"}, "headers": {"If-Match": etag}}
    assert side.http("POST", f"/v1/models/{model}/deployments", acme.owner, **deploy).status_code == 201
    problem(
        side.http("POST", f"/v1/models/{model}/retire", acme.owner, json={"reason": "r"}, headers={"If-Match": etag}),
        412,
        "version_changed",
    )


def test_of_many_concurrent_deployments_exactly_one_wins(side: CommandSide, acme: TenantKeys) -> None:
    model = acme.register()
    acme.approve(model, "1.0.0", model_file(8))
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda _: side.http("POST", f"/v1/models/{model}/deployments", acme.owner, json={"version": "1.0.0"}), range(24))
        )
    assert sorted(a.status_code for a in answers) == [201] + [409] * 23


def test_a_tenant_deploys_within_its_quota_and_an_operator_decides_another_one(side: CommandSide, acme: TenantKeys) -> None:
    mine, path = new_tenant(side), "/v1/tenants/{}/quota"
    first, second = mine.register(), mine.register()
    for model in (first, second):
        mine.approve(model, "1.0.0", model_file(9))
    deployer = side.http.key(mine.tenant, "deploy", user="deployer")
    fresh = side.http.ok("GET", path.format(mine.tenant), deployer)
    assert (fresh["default"], fresh["used"]["replicas"]) == (True, 0)
    problem(side.http("GET", path.format(mine.tenant), acme.owner), 404, "tenant_unknown")
    more = {**fresh["quota"], "replicas": 10**6, "reason": "because I may"}
    problem(side.http("POST", path.format(mine.tenant), mine.owner, json=more), 403, "scope_missing")

    # 100 replicas of any size, with one deploy key: the default quota has an end.
    greedy = {"version": "1.0.0", "spec": {"replicas_max": 100, "cpu_millis": 1_000_000, "gpu_millis": 1_000_000, "memory_bytes": 1 << 40}}
    found = problem(side.http("POST", f"/v1/models/{first}/deployments", deployer, json=greedy), 409, "quota_exceeded")
    assert [v["field"] for v in found["violations"]] == ["spec.cpu_millis", "spec.gpu_millis", "spec.memory_bytes"]

    lower = {**fresh["quota"], "replicas": 3, "reason": "a small team"}
    answer = side.http("POST", path.format(mine.tenant), json=lower, headers={"If-Match": f'"{fresh["version"]}"'})
    assert (answer.status_code, answer.json()["facts"][0]["name"]) == (200, "TenantQuotaSet")
    two = {"version": "1.0.0", "spec": {"replicas_max": 2, "memory_bytes": 1000}}
    side.http.ok("POST", f"/v1/models/{first}/deployments", deployer, json=two)
    found = problem(side.http("POST", f"/v1/models/{second}/deployments", deployer, json=two), 409, "quota_exceeded")
    assert "2 now, 4 with this, quota 3" in found["detail"]
    now = side.http.ok("GET", path.format(mine.tenant), mine.owner)
    assert now["used"] == {"replicas": 2, "cpu_millis": 200, "gpu_millis": 0, "memory_bytes": 2000}

    assert "2" in operator(side.settings, "quotas", "show", mine.tenant)
    shown = operator(side.settings, "quotas", "set", mine.tenant, "--replicas", "4", "--cpu", "0.5", "--reason", "a demonstration")
    assert re.search(r"replicas\W+2\W+4\W", shown) and re.search(r"CPUs\W+0\.2\W+0\.5\W", shown), shown
    side.http.ok("POST", f"/v1/models/{second}/deployments", deployer, json=two)
    side.http.ok("POST", f"/v1/models/{first}/retire", mine.owner, json={"reason": "old"})
    last = json.loads(operator(side.settings, "quotas", "show", mine.tenant, "--json"))
    assert (last["default"], last["used"]["replicas"], last["quota"]) == (False, 2, {**fresh["quota"], "replicas": 4, "cpu_millis": 500})
    end = side.end()
    eventually(lambda: (found := health(side.settings.relay_health_port)) and found["position"] >= end, "relayed, past what is no fact")
    check_complete(side.settings)


def operator(settings: Settings, *words: str) -> str:
    """What `modelmarket WORDS` prints in a wide terminal."""
    command = [sys.executable, "-m", "cli.app", *words]
    env = environment(settings) | {"COLUMNS": "200"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}"
    return ended.stdout


def test_the_largest_input_to_every_command_is_refused_or_delivered(side: CommandSide, acme: TenantKeys) -> None:
    """K3: whatever is accepted fits on the log."""
    http, model = side.http, acme.register()
    acme.approve(model, "1.0.0", model_file(9))
    long, words = "界" * 10_000, ["界" * 200]
    tenant = f"t{uuid.uuid4().hex[:12]}"
    digest = acme.upload(model_file(10))
    lineage = {
        "data_sets": words * 100,
        "dependencies": words * 300,
        "hyperparameters": {f"{i:0200}": "界" * 200 for i in range(200)},
        "commit": "界" * 200,
    }
    eventually(lambda: read_log(side.settings, "models"), "a record that somebody may give up")
    readable = read_log(side.settings, "models")[0]
    sha256 = hashlib.sha256(readable.value).hexdigest()
    of_set = {
        "topic": readable.topic,
        "records": [{"partition": readable.partition, "offset": readable.offset, "sha256": sha256}],
    }
    prices = [{"model": f"{i:0200}", "meter": "calls", "amount_micros": 10**15, "per_units": 10**15} for i in range(3500)]
    answers = [
        http(
            "POST",
            "/v1/models",
            acme.owner,
            json=registration(
                f"m{uuid.uuid4().hex[:12]}",
                description=long,
                tags=words * 50,
                scenario=words[0],
                task=words[0],
                compliance={**COMPLIANCE, "data_sources": words * 100},
            ),
        ),
        http(
            "POST",
            f"/v1/models/{model}/versions",
            acme.owner,
            json={"version": "1.1.0", "artifact": digest, "technical": technical(), "release_notes": long, "lineage": lineage},
        ),
        http("POST", "/v1/tenants", json={"tenant": tenant, "display_name": words[0]}),
        http(
            "POST",
            f"/v1/tenants/{acme.tenant}/keys",
            json={"scopes": ["invoke"], "labels": {f"l{i}": "界" * 200 for i in range(20)}, "department": words[0]},
        ),
        http("POST", "/v1/price-books/large/versions", json={"prices": prices}),
        http("POST", f"/v1/models/{model}/deployments", acme.owner, json={"version": "1.0.0"}),
        http("POST", f"/v1/models/{model}/retire", acme.owner, json={"reason": "界" * 1000, "successor": "界" * 200}),
        http(
            "POST",
            f"/v1/write-offs/records/{readable.topic}/{readable.partition}/{readable.offset}",
            json={"sha256": sha256, "reason": "界" * 1000},
        ),
        http("POST", "/v1/record-sets", json={**of_set, "reason": "界" * 1000, "selection": "界" * 1000}),
    ]
    assert [a.status_code for a in answers] == [201, 201, 201, 201, 422, 201, 200, 201, 201], [a.text[:200] for a in answers]
    problem(answers[4], 422, "fact_too_large")
    end = side.end()
    eventually(lambda: (found := health(side.settings.relay_health_port)) and found["position"] >= end, "relayed")
    check_complete(side.settings)


def test_a_bill_is_fixed_and_issued_once(side: CommandSide) -> None:
    http, billed = side.http, new_tenant(side)
    path = f"/v1/bills/{billed.tenant}"
    problem(http("POST", f"{path}/2026-13/cut"), 422, "period_malformed")
    problem(http("POST", f"{path}/2999-01/cut"), 409, "period_not_begun")
    problem(http("POST", "/v1/bills/nobody/2026-01/cut"), 404, "tenant_unknown")
    period = "2020-01"
    cut = http.ok("POST", f"{path}/{period}/cut")
    assert set(cut["cuts"]) == {"0", "1", "2", "3"}
    problem(http("POST", f"{path}/{period}/cut"), 409, "cut_open")
    eventually(lambda: any(r.key == billed.tenant.encode() for r in read_log(side.settings, "bills")), "the cut is on the log")
    reader = Reader(side.settings, "oracle")
    codec, _ = open_codec(side.settings, reader)
    reader.close()
    fixed = next(
        body for r in read_log(side.settings, "bills") for _, body in [codec.decode(r.value)] if body.get("event_id") == cut["cut_event_id"]
    )
    counts = dict.fromkeys(BILL_COUNTERS, 0)
    digest = Bill(fixed, (), 0, counts, 0).digest().hex()
    complete = {"number": 1, "cut_event_id": cut["cut_event_id"], "digest": digest, "lines": [], "total_micros": 0, "producers_open": 0}
    complete["facts"] = counts
    problem(http("POST", f"{path}/{period}/complete", json={**complete, "digest": "0" * 64}), 422, "digest_wrong")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: http("POST", f"{path}/{period}/complete", json=complete), range(12)))
    assert {a.status_code for a in answers} == {200}
    assert sum(len(a.json()["facts"]) for a in answers) == 1
    problem(http("POST", f"{path}/{period}/complete", json={**complete, "digest": "0" * 64}), 409, "digest_differs")
    assert http.ok("GET", path, billed.owner)["state"] == "issued"
    assert http.ok("POST", f"{path}/{period}/cut")["number"] == 2


def test_nothing_acknowledged_is_lost_when_the_api_is_killed(side: CommandSide, acme: TenantKeys) -> None:
    for _ in range(3):
        keys = [uuid.uuid4().hex for _ in range(200)]
        decided: dict[str, str] = {}
        back = threading.Event()
        back.set()

        def register(key: str, decided: dict[str, str] = decided, back: threading.Event = back) -> None:
            for _ in range(200):
                back.wait(120)
                try:
                    answer = side.http("POST", "/v1/models", acme.owner, json=registration(f"m{key}"), headers={"Idempotency-Key": key})
                except httpx.HTTPError:
                    continue
                assert answer.status_code == 201, answer.text
                decided[key] = answer.json()["facts"][0]["event_id"]
                return

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(register, key) for key in keys]
            eventually(lambda decided=decided: len(decided) > 20, "under way")
            back.clear()
            before = dict(decided)
            try:
                side.api.kill()
                side.api.start()
                eventually(lambda: is_ready(side.settings.command_port), "the API is back")
            finally:
                back.set()
            for f in futures:
                f.result(120)
        for key, event_id in before.items():
            again = side.http.ok("POST", "/v1/models", acme.owner, json=registration(f"m{key}"), headers={"Idempotency-Key": key})
            assert again["facts"][0]["event_id"] == event_id
    end = side.end()
    eventually(lambda: (found := health(side.settings.relay_health_port)) and found["position"] >= end, "relayed")
    check_complete(side.settings)


def test_the_documentation_lists_every_command(side: CommandSide) -> None:
    spec = httpx.get(f"{side.settings.commands}/openapi.json", timeout=60).json()
    assert "/v1/models/{model}/rollouts" in spec["paths"]
    assert spec["components"]["securitySchemes"]
    assert httpx.get(f"{side.settings.commands}/docs", timeout=60).status_code == 200
