"""Malformed, hostile and very large requests to the command API."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator

from tests.support.decided_log import check_complete, read_log
from tests.support.polling import eventually, health
from tests.support.steps.command_side import (
    COMPLIANCE,
    CommandSide,
    TenantKeys,
    model_file,
    problem,
    registration,
    technical,
)


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


def test_a_price_that_no_bill_could_hold_is_refused_with_what_was_meant(side: CommandSide, acme: TenantKeys) -> None:
    dear = [{"model": "*", "meter": "cpu_us", "amount_micros": 20_000_000}]
    found = problem(side.http("POST", "/v1/price-books/dear/versions", json={"prices": dear}), 422, "price_too_high")
    assert "per_units 3600000000" in found["remedy"] and found["field"] == "prices.0"
    dear[0]["per_units"] = 3_600_000_000
    unmeasured = [*dear, {"model": "*", "meter": "gpu_us", "amount_micros": 1}]
    found = problem(side.http("POST", "/v1/price-books/dear/versions", json={"prices": unmeasured}), 422, "meter_not_measured")
    assert found["field"] == "prices.1"
    assert side.http("POST", "/v1/price-books/dear/versions", json={"prices": dear}).status_code == 201


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
