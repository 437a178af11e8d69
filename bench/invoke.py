"""Inference over HTTP with usage acknowledged before each answer, against the same model as a plain Ray Serve deployment.

The plain one is what Serve's own documentation shows: an HTTP deployment that calls the model's deployment through a handle, one
call per request, on a Ray of its own, behind HAProxy; no keys, no metering. Same run, same machine, same generator (`bench.load`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.baselines.plain import PLAIN_APP
from bench.baselines.plain_stack import plain_serve
from bench.load import Plan, Result
from cli.prepare import prepare_log
from examples.decided_facts import DecidedFactWriter
from examples.digits_model import TECHNICAL, write_digits
from infra.launcher import Stack
from infra.launcher.processes import command_of, marked

NAME = "invoke"
MODEL, SECRET = "model-vision-core-digits", "mm_bench"
CONNECTIONS = (1, 16, 64)
ANSWER_S_MAX = 120.0
Row = dict[str, Any]


def run(stack: Stack, quick: bool) -> list[Row]:
    seconds = 1.0 if quick else 8.0
    stack.up({"kafka", "registry", "ray", "signer"})
    facts, artifact = write_facts(stack)
    try:
        stack.up({"controller", "gateway"})
        body = json.dumps(
            {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [float(n % 17) for n in range(64)]}]}
        )
        ours = Plan(
            host=stack.settings.host,
            port=stack.settings.gateway_port,
            path=f"/v2/models/{MODEL}/infer",
            body=body,
            headers={"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"},
            seconds=seconds,
        )
        answering(ours)
        metered = {n: measured(stack, with_connections(ours, n)) for n in CONNECTIONS}
        with plain_serve(stack, "acme", artifact) as baseline:
            plain = replace(ours, port=baseline.settings.gateway_port, path="/plain", headers={"Content-Type": "application/json"})
            answering(plain)
            bare = {n: measured(baseline, with_connections(plain, n)) for n in CONNECTIONS}
    finally:
        facts.close()
    return [row for n in CONNECTIONS for row in rows(n, metered[n], bare[n])]


def write_facts(stack: Stack) -> tuple[DecidedFactWriter, str]:
    """Facts of one deployed model and one key, written as the relay would."""
    settings = stack.settings
    prepare_log(settings)
    facts = DecidedFactWriter(settings)
    facts.tenant("acme")
    facts.key("acme", SECRET)
    facts.model(MODEL, "acme")
    file = write_digits(Path(settings.folder) / "digits.onnx")
    facts.deploy(MODEL, "acme", "1.0.0", facts.version(MODEL, "acme", "1.0.0", file, TECHNICAL))
    return facts, f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def with_connections(plan: Plan, connections: int) -> Plan:
    return replace(plan, connections=connections)


def answering(plan: Plan) -> None:
    end = time.monotonic() + ANSWER_S_MAX
    while time.monotonic() < end:
        try:
            if (
                httpx.post(f"http://{plan.host}:{plan.port}{plan.path}", content=plan.body, headers=plan.headers, timeout=5).status_code
                == 200
            ):
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{plan.path} did not answer within {ANSWER_S_MAX} s")


def measured(stack: Stack, plan: Plan, *, again: int = 2) -> tuple[Result, dict[str, float]]:
    """The generator's result, and CPU µs per answer of each kind of process."""
    groups = processes(stack)
    before = {name: used(found) for name, found in groups.items()}
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(plan)),
        capture_output=True,
        text=True,
        timeout=plan.seconds + 60,
        check=True,
    )
    result = Result(**json.loads(done.stdout))
    if result.failures and again:  # a proxy that has just been reloaded may hang up once
        return measured(stack, plan, again=again - 1)
    if result.failures:
        raise RuntimeError(f"{result.failures} of {result.answers} calls failed at {plan.connections} connections of {plan.path}")
    calls = result.answers * (plan.seconds + plan.warm_s) / plan.seconds
    return result, {name: (used(found) - before[name]) * 1e6 / max(1.0, calls) for name, found in groups.items()}


def processes(stack: Stack) -> dict[str, list[psutil.Process]]:
    kinds: dict[str, Callable[[str], bool]] = {
        "gateway": lambda c: "serving.hosting.gateway_process" in c,
        "replica": lambda c: "ServeReplica:model" in c,
        "plain ingress": lambda c: f"ServeReplica:{PLAIN_APP}:PlainIngress" in c,
        "plain replica": lambda c: f"ServeReplica:{PLAIN_APP}:PlainModel" in c,
        "haproxy": lambda c: "haproxy" in c and "-f" in c,
        "kafka": lambda c: "kafka.Kafka" in c,
    }
    found: dict[str, list[psutil.Process]] = {}
    for pid in marked(stack.paths.mark):
        command = command_of(pid)
        for name, is_one in kinds.items():
            if is_one(command):
                found.setdefault(name, []).append(psutil.Process(pid))
    return found


def used(found: list[psutil.Process]) -> float:
    total = 0.0
    for process in found:
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def rows(connections: int, ours: tuple[Result, dict[str, float]], plain: tuple[Result, dict[str, float]]) -> list[Row]:
    (metered, cpu), (bare, bare_cpu) = ours, plain
    at = f"at {connections} connection{'s' if connections > 1 else ''}"
    top = connections == max(CONNECTIONS)
    found: list[Row] = [
        {
            "metric": f"calls metered and answered {at}",
            "value": round(metered.per_second),
            "unit": "/s",
            "baseline": f"plain Serve {bare.per_second:.0f}/s",
            "ratio": round(metered.per_second / bare.per_second, 2),
            "target": "≥ 3 500/s and ≥ 2.5 ×" if top else "",
        },
        {"metric": f"p50 {at}", "value": round(metered.p50_ms, 1), "unit": "ms", "baseline": f"{bare.p50_ms:.1f} ms"},
        {
            "metric": f"p99 {at}",
            "value": round(metered.p99_ms, 1),
            "unit": "ms",
            "baseline": f"{bare.p99_ms:.1f} ms",
            "target": "≤ 50 ms" if top else "",
        },
    ]
    if top:
        baselines = {"gateway": "plain ingress", "replica": "plain replica"}
        for name in ("gateway", "replica", "haproxy", "kafka"):
            theirs = bare_cpu.get(baselines.get(name, name))
            found.append(
                {
                    "metric": f"CPU per call, {name}, {at}",
                    "value": round(cpu.get(name, 0.0)),
                    "unit": "µs",
                    "baseline": f"{theirs:.0f} µs" if theirs is not None else "",
                }
            )
    return found
