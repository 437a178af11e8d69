"""What a tenant and a key may see and do."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import httpx

from access.codes import KEY_MALFORMED, KEY_MISSING
from tests.support.command_processes import ADMIN
from tests.support.steps.command_side import (
    CommandSide,
    TenantKeys,
    digest_of,
    model_file,
    new_tenant,
    problem,
    registration,
    technical,
)


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


def keyholders(side: CommandSide) -> tuple[str, str]:
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
    ours = [side.http.key("platform-keys", "admin", user=user) for user in keyholders(side)]
    mine, theirs = issue(other := uuid.uuid4().hex, ours[0]), issue(other, ours[1])
    assert (mine.status_code, theirs.status_code, theirs.json()["code"]) == (201, 422, "idempotency_key_reused")
    assert issue(other, ours[0]).json()["api_key"] == mine.json()["api_key"]
    kept = b"".join(p.read_bytes() for p in Path(side.settings.folder, "store").iterdir())
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in kept
    assert secret.encode() not in kept
    assert secret.encode() not in side.api.log.read_bytes()
