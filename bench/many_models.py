"""Many small models deployed at once: when the first and the last are ready, what each takes idle, and how busy the idle stack is.

Every model is the digits classifier under a name of its own, so each has a replica of its own. The gateway says when one can be called.
"""

from __future__ import annotations

import os
import time
from typing import Any

import psutil
from rich.console import Console

from examples.demo.market import Market
from examples.demo.story import Story
from infra.launcher import Stack
from infra.launcher.processes import marked, pss_of

NAME = "many_models"
MODELS = 30
AT_ONCE = 17
READY_S_MAX = 600.0
SETTLE_S, IDLE_S = 20.0, 30.0
POLL_S = 0.2
REPLICA = "ray::ServeReplica:"
Row = dict[str, Any]


def run(stack: Stack, quick: bool) -> list[Row]:
    models, at_once = (4, 3) if quick else (MODELS, AT_ONCE)
    story = Story(stack, Console(quiet=True), chaos=False)
    story.start()
    story.open_accounts()
    first, _ = story.train()
    story.supply(first)
    names = [supplied(story, first, n) for n in range(models)]
    alone = deployed(story.alice, story.globex, first.version, ["model-vision-lab-digits"])
    together = deployed(story.alice, story.globex, first.version, names[:at_once])
    rest = deployed(story.alice, story.globex, first.version, names[at_once:])
    time.sleep(2 if quick else SETTLE_S)
    replicas = {pid: pss_of(pid) for pid in marked(stack.paths.mark) if is_model(pid)}
    busy = busy_share(stack, 2 if quick else IDLE_S)
    each = sorted(replicas.values())[len(replicas) // 2]
    baseline = f"one alone {alone[-1]:.1f} s"
    return [
        row(f"{at_once} models deployed at once: the first is ready", together[0], "s", baseline, together[0] / alone[-1], "≤ 15 s"),
        row(f"… all {at_once}", together[-1], "s", baseline, together[-1] / alone[-1], "≤ 45 s"),
        row(f"the next {len(rest)} at once: all", rest[-1], "s", baseline, rest[-1] / alone[-1], ""),
        row(f"idle memory of a model's process, PSS, median of {len(replicas)}", each / 2**20, "MiB", "", None, "≤ 40 MiB"),
        row(
            f"processors that the idle stack keeps busy, {len(replicas)} models",
            100 * busy,
            f"% of {os.cpu_count()} cores",
            "",
            None,
            "≤ 5 %",
        ),
    ]


def row(metric: str, value: float, unit: str, baseline: str, ratio: float | None, target: str) -> Row:
    made: Row = {"metric": metric, "value": round(value, 1), "unit": unit, "baseline": baseline, "target": target}
    return made if ratio is None else made | {"ratio": ratio}


def supplied(story: Story, model: Any, number: int) -> str:
    """Registers a model with the same file under another name, and two people approve its version."""
    body = {"domain": "vision", "team": "lab", "name": f"digits{number}", "scenario": "forms", "task": "image-classification"}
    body |= {"compliance": {"licence": "BSD-3-Clause", "data_sources": ["scikit-learn digits (UCI)"], "data_level": "public"}}  # type: ignore[dict-item]
    name = str(story.alice.command("POST", "/v1/models", body)["model"])
    story.add_version(name, model, [])
    story.approve(name, model)
    return name


def deployed(owner: Market, caller: Market, version: str, names: list[str]) -> list[float]:
    """Seconds from the first command until each can be called, in order."""
    began, ready = time.monotonic(), dict[str, float]()
    for name in names:
        owner.command("POST", f"/v1/models/{name}/deployments", {"version": version})
    while len(ready) < len(names):
        for name in names:
            if name not in ready and caller.ready(name, version):
                ready[name] = time.monotonic() - began
        if time.monotonic() - began > READY_S_MAX:
            raise RuntimeError(f"{len(names) - len(ready)} of {len(names)} models are not ready after {READY_S_MAX:.0f} s")
        time.sleep(POLL_S)
    return sorted(ready.values())


def is_model(pid: int) -> bool:
    try:
        title = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
    return title.startswith(REPLICA) and ":gateway:" not in title


def busy_share(stack: Stack, seconds: float) -> float:
    """Processor time of all processes of the stack over `seconds`, as a share of all cores."""
    before, began = cpu_s(stack), time.monotonic()
    time.sleep(seconds)
    after = cpu_s(stack)
    used = sum(after[pid] - before.get(pid, 0.0) for pid in after)
    return used / (time.monotonic() - began) / (os.cpu_count() or 1)


def cpu_s(stack: Stack) -> dict[int, float]:
    found: dict[int, float] = {}
    for pid in marked(stack.paths.mark):
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        found[pid] = times.user + times.system
    return found
