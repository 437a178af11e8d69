"""A tenant's quota over HTTP and from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from events.process.settings import Settings
from tests.support.command_processes import ROOT, environment
from tests.support.decided_log import check_complete
from tests.support.polling import eventually, health
from tests.support.steps.command_side import CommandSide, TenantKeys, model_file, new_tenant, problem


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
