"""The gateway on real parts: every answer is in the log, and a killed process restarts without loss."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from events.facts import accounts, deployments, models
from events.log.client import Reader, Writer
from events.log.schemas import publish
from events.log.topic_admin import apply_access, apply_topics
from events.process.clock import now_us
from events.process.problem import PROBLEM_JSON
from examples.decided_facts import DecidedFactWriter
from examples.digits_model import TECHNICAL, write_digits
from infra.launcher import Stack
from serving.control.controller import Controller
from serving.serve_names import APPLIED_APP
from tests.support.gateway_stack import (
    SECRET,
    STALENESS_S_MAX,
    V1,
    GatewayStack,
    M,
    apps,
    check_answers,
    check_chains,
    settings_of_another_log,
)
from tests.support.polling import eventually, seconds_until

SOON_US = 10_000_000
"""Longer than a fact takes to every gateway, so that a test sees before and after."""


def test_an_answer_has_its_fact_with_every_dimension_where_the_receipt_says(gateway: GatewayStack) -> None:
    answer = gateway.infer()
    assert answer.status_code == 200
    check_answers(gateway, [answer])
    _, body, _ = next(r for r in gateway.usage() if r[0] == answer.headers["modelmarket-receipt"])
    dimensions = {
        "tenant": "caller",
        "sub_account": "lab-7",
        "department": "research",
        "team": "vision",
        "project": "digits",
        "key_id": f"key-{hashlib.sha256(SECRET.encode()).hexdigest()[:8]}",
        "user": "user-1",
        "region": "hefei",
        "provider": "acme",
        "model": M,
        "model_version": "1.0.0",
        "deployment": V1,
        "operation": "infer",
        "route": "live:100",
        "outcome": "succeeded",
        "status": 200,
    }
    assert {name: body[name] for name in dimensions} == dimensions
    assert body["labels"] == {"purpose": "test"} and body["calls"] == 1 and body["attempt"] == 1 and body["replica"]
    assert body["bytes_in"] > 64 and body["bytes_out"] == len(answer.content) and body["latency_us"] > 0 and body["cpu_us"] >= 0


def test_concurrent_calls_are_batched_and_each_is_in_the_log_once(gateway: GatewayStack) -> None:
    answers = gateway.infer_many(300)
    assert Counter(a.status_code for a in answers) == {200: 300}
    check_answers(gateway, answers)
    receipts = {a.headers["modelmarket-receipt"] for a in answers}
    sizes = [body["batch_size"] for receipt, body, _ in gateway.usage() if receipt in receipts]
    assert max(sizes) > 1


def test_a_large_call_is_parsed_and_written_in_a_process_without_secrets_while_others_are_answered(gateway: GatewayStack) -> None:
    """Four megabytes of JSON in, more than one out (K28)."""
    rows = 12_000
    data = [float(n % 17) for n in range(64)] * rows
    body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [rows, 64], "data": data}]}
    url, auth = f"{gateway.settings.gateway}/v2/models/{M}/infer", {"Authorization": f"Bearer {SECRET}"}
    with gateway.calling() as others:
        large = gateway.client.post(url, json=body, headers=auth, timeout=90)
    assert large.status_code == 200, large.text[:500]
    assert large.json()["outputs"][0]["shape"][0] == rows
    assert {a.status_code for a in others} == {200}
    check_answers(gateway, [large, *others])
    (process,) = gateway.pids("serving.gateway.bodies.body_process")
    assert b"MODELMARKET" not in Path(f"/proc/{process}/environ").read_bytes()


def test_the_same_idempotency_key_and_body_give_the_same_invocation_key_and_another_body_another(gateway: GatewayStack) -> None:
    first, again = gateway.infer(Idempotency_Key="k-1"), gateway.infer(Idempotency_Key="k-1")
    pinned = gateway.infer(V1, Idempotency_Key="k-1")
    facts = {receipt: body for receipt, body, _ in gateway.usage()}
    keys = [facts[a.headers["modelmarket-receipt"]]["invocation_key"] for a in (first, again, pinned)]
    assert len(keys[0]) == 32 and keys[0] == keys[1] != keys[2]
    assert gateway.infer(Idempotency_Key="k" * 256).status_code == 400


def test_refusals_are_facts_counted_per_second_and_never_billed(gateway: GatewayStack) -> None:
    assert {gateway.infer(secret="mm_wrong").status_code for _ in range(20)} == {401}
    assert gateway.infer("model-no-such-thing").status_code == 404

    def written() -> bool:
        counts = Counter[tuple[str, str, str]]()
        for _, body, _ in gateway.usage():
            if body["_name"] == "InvocationRefused":
                counts[body["tenant"], body["model"], body["error_code"]] += body["count"]
        return counts["-", "-", "key_unknown"] >= 20 and counts["caller", "-", "unknown_model"] >= 1

    eventually(written, "refusals are written", 180)
    check_chains(gateway.usage())


def test_a_key_stops_working_within_two_seconds_of_its_revocation(gateway: GatewayStack) -> None:
    key_id = gateway.facts.key("caller", "mm_short-lived")
    eventually(lambda: gateway.infer(secret="mm_short-lived").status_code == 200, "a new key works", 180)
    gateway.facts.write(accounts.ApiKeyRevoked, tenant="caller", key_id=key_id, by="admin")
    assert seconds_until(lambda: gateway.infer(secret="mm_short-lived").status_code == 401, "a revoked key stops", 5) <= 2


def test_a_key_works_until_the_instant_at_which_it_expires_and_not_after(gateway: GatewayStack) -> None:
    gateway.facts.key("caller", "mm_expired", expires_at=now_us() - 1_000_000)
    ends = now_us() + SOON_US
    gateway.facts.key("caller", "mm_ending", expires_at=ends)
    eventually(lambda: gateway.infer(secret="mm_ending").status_code == 200, "the key works until then", SOON_US / 1e6)
    refused = gateway.infer(secret="mm_expired")  # issued before one that works, so known
    assert refused.status_code == 401 and refused.json()["code"] == "key_expired"
    while now_us() < ends:
        answer = gateway.infer(secret="mm_ending")
        assert answer.status_code == 200 or now_us() >= ends
        time.sleep(0.02)
    assert gateway.infer(secret="mm_ending").status_code == 401


def test_a_key_without_the_scope_is_forbidden_and_sees_no_models(gateway: GatewayStack) -> None:
    gateway.facts.key("caller", "mm_reader", scopes=("read",))
    eventually(lambda: gateway.infer(secret="mm_reader").status_code == 403, "a key without scope", 180)
    listed = gateway.client.get(f"{gateway.settings.gateway}/v1/models", headers={"Authorization": "Bearer mm_reader"})
    assert listed.json()["data"] == []


def test_the_models_are_listed_with_what_they_cost_the_caller_now(gateway: GatewayStack) -> None:
    def listed() -> dict[str, Any]:
        found = gateway.client.get(f"{gateway.settings.gateway}/v1/models", headers={"Authorization": f"Bearer {SECRET}"}).json()
        assert found["object"] == "list"
        return next(m for m in found["data"] if m["id"] == M)

    def version() -> int | None:
        return (listed()["pricing"] or {}).get("book_version")

    first = listed()
    assert (first["object"], first["owned_by"], first["pricing"]) == ("model", "acme", None)
    assert 0 < time.time() - first["created"] < 3600
    gateway.facts.prices("standard", 1, now_us(), ("*", "calls", 500, 1), ("*", "cpu_us", 3, 1_000_000), (M, "calls", 900, 1000))
    eventually(lambda: version() == 1, "the price book is known", 180)
    meters = {"calls": {"amount_micros": 900, "per_units": 1000}, "cpu_us": {"amount_micros": 3, "per_units": 1_000_000}}
    assert listed()["pricing"] == {"price_book": "standard", "book_version": 1, "currency": "CNY", "meters": meters}
    starts = now_us() + SOON_US
    gateway.facts.prices("standard", 2, starts, ("*", "calls", 700, 1))
    gateway.facts.key("caller", "mm_after-the-prices")
    eventually(lambda: gateway.infer(secret="mm_after-the-prices").status_code == 200, "the second version is known, too", SOON_US / 1e6)
    assert version() == 1 and now_us() < starts
    eventually(lambda: version() == 2, "the second version takes over")
    assert now_us() >= starts and listed()["pricing"]["meters"] == {"calls": {"amount_micros": 700, "per_units": 1}}


def test_a_canary_takes_exactly_its_share_and_a_rollback_fails_no_call(gateway: GatewayStack) -> None:
    gateway.facts.rollout(M, "acme", ("1.0.0", "1.1.0"), gateway.digests["1.1.0"], 20)
    try:
        eventually(lambda: versions([gateway.infer()]) == {"1.1.0"}, "the canary takes calls", 180)
        answers = gateway.infer_many(100, at_once=4)
        assert Counter(a.headers.get("modelmarket-model-version") for a in answers) == {"1.0.0": 80, "1.1.0": 20}
    finally:
        during = rolled_back_while_called(gateway, "1.1.0")
    assert {a.status_code for a in during} == {200}
    check_answers(gateway, [*answers, *during])


def versions(answers: list[httpx.Response]) -> set[str]:
    return {a.headers.get("modelmarket-model-version", "") for a in answers}


def rolled_back_while_called(gateway: GatewayStack, bad: str) -> list[httpx.Response]:
    with gateway.calling() as during:
        gateway.facts.write(deployments.RolledBack, model=M, from_version=bad, to_version="1.0.0", reason="test", by="owner")
        assert seconds_until(lambda: versions(gateway.infer_many(10)) == {"1.0.0"}, "rolled back") <= 5
    return during


def test_a_failed_version_is_reported_and_the_live_one_goes_on(gateway: GatewayStack) -> None:
    file = gateway.settings.folder / "broken.onnx"
    file.write_bytes(b"no model at all")
    digest = gateway.facts.version(M, "acme", "2.0.0", file, TECHNICAL)
    gateway.facts.rollout(M, "acme", ("1.0.0", "2.0.0"), digest, 50)
    pinned = f"{M}-v2.0.0"
    try:
        eventually(
            lambda: "not_loadable" in gateway.infer(pinned).text or "ONNX" in gateway.infer(pinned).text,
            "the failure is in the answer",
            180,
        )
        assert gateway.infer(pinned).status_code == 503
        assert versions(gateway.infer_many(20)) == {"1.0.0"}
    finally:
        gateway.facts.write(deployments.RolledBack, model=M, from_version="2.0.0", to_version="1.0.0", reason="broken", by="owner")
        gateway.facts.write(deployments.VersionUndeployed, model=M, model_version="2.0.0", reason="broken", by="owner")
    eventually(lambda: pinned not in apps(gateway), "the broken version is unloaded", 180)


def test_a_killed_replica_costs_no_call_and_every_attempt_is_a_fact(gateway: GatewayStack) -> None:
    with gateway.calling(callers=4, timeout_s=90) as answers:
        eventually(lambda: len(answers) >= 40, "calls are under way")
        gateway.kill("ServeReplica:model-vision-core-digits-v1.0.0")
        before = len(answers)
        eventually(lambda: len(answers) >= before + 40, "calls go on")
    eventually(lambda: gateway.infer().status_code == 200, "a new replica answers", 180)
    good = [a for a in answers if a.status_code == 200]
    assert {a.status_code for a in answers} <= {200, 503} and len(answers) - len(good) <= 4
    check_answers(gateway, good)


def test_calls_go_on_while_a_killed_controller_restarts(gateway: GatewayStack) -> None:
    gateway.kill("serving.control.controller")
    assert {a.status_code for a in gateway.infer_many(20)} == {200}
    health = f"http://{gateway.settings.host}:{gateway.settings.controller_health_port}/healthz"
    eventually(lambda: gateway.client.get(health).status_code == 200, "the controller is back", 180)
    assert {APPLIED_APP, V1} <= apps(gateway)


def test_while_kafka_is_down_nothing_is_answered_and_nothing_answered_is_lost(gateway: GatewayStack) -> None:
    before = gateway.infer_many(20)
    (broker,) = gateway.pids("kafka.Kafka")
    os.kill(broker, signal.SIGSTOP)
    try:
        away = seconds_until(lambda: gateway.infer(timeout_s=15).status_code == 503, "calls are refused", 15)
        refused = gateway.infer()
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1 and away < 15
        assert refused.json()["code"] in ("log_unavailable", "not_acknowledged")
    finally:
        os.kill(broker, signal.SIGCONT)

    def all_answered() -> list[httpx.Response]:
        """A broker that was stopped for longer than its session is taken out of the cluster for a moment when it goes on."""
        answers = gateway.infer_many(20)
        return answers if {a.status_code for a in answers} == {200} else []

    after = eventually(all_answered, "Kafka is back", 180)
    check_answers(gateway, [*before, *after])
    records = gateway.usage()
    voided = {body["voided"] for _, body, _ in records if body["_name"] == "InvocationVoided"}
    assert voided <= {body["event_id"] for _, body, _ in records if body["_name"] == "InvocationSettled"}
    assert not voided & {a.headers["modelmarket-event-id"] for a in (*before, *after)}


def test_a_gateway_without_heartbeats_stops_answering_before_a_revoked_key_could_matter_for_long(gateway: GatewayStack) -> None:
    secret = "mm_soon-revoked"
    key_id = gateway.facts.key("caller", secret)
    eventually(lambda: gateway.infer(secret=secret).status_code == 200, "the new key works", 180)
    gateway.facts.silent = True
    try:
        gateway.facts.write(accounts.ApiKeyRevoked, tenant="caller", key_id=key_id, by="admin")
        ready = f"{gateway.settings.gateway}/v2/health/ready"
        eventually(lambda: gateway.client.get(ready).status_code == 503, "not ready without news for five seconds", 180)
        # The revocation is on the log, but no heartbeat covers it: the bound on staleness ends the key.
        ended = seconds_until(lambda: gateway.infer(secret=secret).status_code != 200, "the key ends with the bound", 90)
        assert ended <= STALENESS_S_MAX + 5
        stale = gateway.infer()
        assert (stale.status_code, stale.json()["code"]) == (503, "keys_stale")
    finally:
        gateway.facts.silent = False
    eventually(lambda: gateway.infer().status_code == 200, "news again", 180)
    assert gateway.infer(secret=secret).status_code == 401


def test_a_second_controller_waits_for_the_first(gateway: GatewayStack) -> None:
    second = Controller(gateway.settings)
    thread = threading.Thread(target=second.run)
    thread.start()
    try:
        eventually(lambda: "another controller" in str(second.health()["detail"]), "the second waits", 180)
    finally:
        second.stop()
        thread.join(60)
    assert not thread.is_alive()


def test_a_dead_ray_head_is_set_up_again_with_every_model(gateway: GatewayStack) -> None:
    before = apps(gateway)
    gateway.kill("gcs_server")
    (away,) = eventually(lambda: [answer for answer in (gateway.infer(timeout_s=30),) if not answer.is_success], "Ray went down", 180)
    assert (away.status_code, away.headers["retry-after"], away.headers["content-type"]) == (503, "2", PROBLEM_JSON)
    # The promise is 20 s; Ray's own start is most of it, and on a machine that is busy with other tests it takes three times as long.
    eventually(lambda: gateway.infer(timeout_s=30).status_code == 200, "calls are answered again", 180)
    assert apps(gateway) == before


def test_a_retired_model_is_gone_with_its_successor_and_unloaded(gateway: GatewayStack) -> None:
    other = "model-vision-core-other"
    gateway.facts.model(other, "acme")
    digest = gateway.facts.version(other, "acme", "1.0.0", write_digits(gateway.settings.folder / "other.onnx"), TECHNICAL)
    gateway.facts.deploy(other, "acme", "1.0.0", digest)
    eventually(lambda: gateway.infer(other).status_code == 200, "the other model answers", 180)
    gateway.facts.write(models.ModelRetired, model=other, reason="old", successor=M, by="owner")
    eventually(lambda: gateway.infer(other).status_code == 410, "gone", 180)
    answer = gateway.infer(other)
    assert answer.json()["successor"] == M and M in answer.json()["remedy"]
    eventually(lambda: f"{other}-v1.0.0" not in apps(gateway), "unloaded", 180)
    assert gateway.infer(secret=SECRET).status_code == 200


def test_on_an_empty_or_a_wrong_log_no_serving_model_disappears(gateway: GatewayStack, log_stack: Stack, tmp_path: Path) -> None:
    other = log_stack.settings
    apply_topics(other)
    apply_access(other)
    writer, reader = Writer(other, "prepare"), Reader(other, "prepare")
    publish(other, writer, reader)
    writer.close()
    reader.close()
    before = apps(gateway)
    controller = Controller(settings_of_another_log(gateway, other, tmp_path))
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        eventually(lambda: controller.health()["detail"] == "folding the log", "an empty log is waited on", 180)
        time.sleep(3)  # long enough for ten rounds of a controller that would write
        assert controller.health()["detail"] == "folding the log" and apps(gateway) == before
        facts = DecidedFactWriter(other)
        eventually(lambda: "wrong_log" in str(controller.health()["detail"]), "a wrong log is named", 180)
        assert controller.health()["status"] == "failed"
        time.sleep(3)
        assert apps(gateway) == before and gateway.infer().status_code == 200
        facts.close()
    finally:
        controller.stop()
        thread.join(20)
    assert not thread.is_alive()
