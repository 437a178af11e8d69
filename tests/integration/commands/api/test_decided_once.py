"""One command happens once: whoever repeats it, whoever else is at it, and whatever is killed."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx

from events.facts.bills import BILL_COUNTERS
from events.log.client import Reader
from events.log.schemas import open_codec
from rating.bill import Bill
from tests.support.decided_log import check_complete, read_log
from tests.support.polling import eventually, health, is_ready
from tests.support.steps.command_side import (
    CommandSide,
    TenantKeys,
    model_file,
    new_tenant,
    problem,
    registration,
)


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
