"""The OpenAPI document of the command API says exactly what the API does: schemathesis finds nothing, on a real store and log."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from commands.api import build
from commands.http.command_app import open_command_app
from events.process.problem import PROBLEM_JSON
from tests.support.command_processes import ADMIN
from tests.support.openapi.cases import findings
from tests.support.stacks import prepared_log

KNOWN = {"tenant": "acme", "model": "model-vision-lab-digits", "book": "standard", "period": "2026-01", "version": "1.0.0"}
COMPLIANCE = {"licence": "MIT", "data_sources": ["uci"], "data_level": "public"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    with prepared_log(tmp_path_factory.mktemp("openapi"), admin_key=ADMIN) as stack:
        commands = open_command_app(stack.settings)
        api = build(commands)
        price = {"model": "*", "meter": "calls", "amount_micros": 7}
        ok(api, "POST", "/v1/price-books/standard/versions", {"prices": [price]})
        ok(api, "POST", "/v1/tenants", {"tenant": "acme", "display_name": "Acme"})
        described = {"domain": "vision", "team": "lab", "name": "digits", "scenario": "post", "task": "reading", "compliance": COMPLIANCE}
        ok(api, "POST", "/v1/models", {**described, "tenant": "acme"})
        yield api
        commands.close()


def ok(api: FastAPI, method: str, path: str, body: object = None, key: str = ADMIN) -> Any:
    answer = TestClient(api).request(method, path, json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.is_success, answer.text
    return answer.json()


def test_schemathesis_finds_nothing_in_the_command_api(api: FastAPI) -> None:
    cases, found = findings(api, ADMIN, KNOWN, examples=5, seed=1)
    assert not found, "\n\n".join(found)
    assert cases > 1000


@pytest.mark.soak
def test_schemathesis_finds_nothing_in_the_command_api_for_long(api: FastAPI) -> None:
    seed = random.randrange(1 << 32)
    _, found = findings(api, ADMIN, KNOWN, examples=200, seed=seed)
    assert not found, f"seed {seed}\n" + "\n\n".join(found)


def test_every_operation_documents_its_refusals_as_problem_documents_and_every_command_its_headers(api: FastAPI) -> None:
    document = api.openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            refusals = {s: r["content"] for s, r in operation["responses"].items() if s[0] in "45"}
            assert {"400", "401", "403", "422", "500", "503"} <= refusals.keys(), (method, path)
            assert all(content.keys() == {PROBLEM_JSON} for content in refusals.values()), (method, path)
            headers = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "header"}
            assert headers == ({"Idempotency-Key", "If-Match"} if method in ("post", "delete") else set()), (method, path)
    signed = document["components"]["schemas"]["CompleteBillRequest"]["properties"]["total_micros"]
    assert (signed["minimum"], signed["maximum"]) == (-(2**63) + 1, 2**63 - 1)  # FastAPI writes the float 2^63


def test_a_price_book_is_read_by_admins_and_by_the_tenants_that_pay_by_it(api: FastAPI) -> None:
    # Names of its own: the tests before it have published what they liked.
    ok(api, "POST", "/v1/price-books/gold/versions", {"prices": [{"model": "*", "meter": "calls", "amount_micros": 7}]})
    shown = ok(api, "GET", "/v1/price-books/gold")
    assert shown["prices"] == [{"model": "*", "meter": "calls", "amount_micros": 7, "per_units": 1}]
    for tenant in ("initech", "globex"):
        ok(api, "POST", "/v1/tenants", {"tenant": tenant, "display_name": tenant, "price_book": "gold"})
    reader = ok(api, "POST", "/v1/tenants/initech/keys", {"scopes": ["read"]})["api_key"]
    assert ok(api, "GET", "/v1/tenants/initech/price-book", key=reader) == shown
    for path, status in (("/v1/price-books/gold", 403), ("/v1/tenants/globex/price-book", 404)):
        assert TestClient(api).get(path, headers={"Authorization": f"Bearer {reader}"}).status_code == status


def test_an_unsupported_method_is_answered_with_the_supported_ones(api: FastAPI) -> None:
    answer = TestClient(api).patch("/v1/write-offs/producers/p/e", headers={"Authorization": f"Bearer {ADMIN}"})
    assert (answer.status_code, answer.headers["allow"], answer.json()["code"]) == (405, "GET, POST", "method_not_allowed")
