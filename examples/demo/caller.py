"""A tenant's program that calls a model: many calls at once, each retried with the same Idempotency-Key until it is answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from examples.demo.market import DemoFailed

CONNECTIONS = 16
ANSWER_S_MAX = 180.0
"""How long one call is retried: longer than any part of the stack needs to come back."""


@dataclass
class Answers:
    """What came back: label per call, which version answered, receipts, and how often the caller had to ask again."""

    labels: list[int] = field(default_factory=list[int])
    versions: Counter[str] = field(default_factory=Counter[str])
    receipts: list[str] = field(default_factory=list[str])
    retries: int = 0
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list[float])


def call_all(
    gateway: str, key: str, model: str, pixels: Any, names: Sequence[str], progress: Callable[[], None], *, connections: int = CONNECTIONS
) -> Answers:
    """One call per image; `names` are the Idempotency-Keys. Raises DemoFailed when one is never answered."""
    return asyncio.run(_call_all(f"{gateway}/v2/models/{model}/infer", key, pixels, names, progress, connections))


async def _call_all(url: str, key: str, pixels: Any, names: Sequence[str], progress: Callable[[], None], connections: int) -> Answers:
    answers, began = Answers(labels=[-1] * len(names)), time.monotonic()
    queue = iter(range(len(names)))
    timeout = aiohttp.ClientTimeout(total=15)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=connections)) as http:

        async def work() -> None:
            for i in queue:
                await _call(http, url, key, pixels[i], names[i], i, answers)
                progress()

        await asyncio.gather(*(work() for _ in range(connections)))
    answers.seconds = time.monotonic() - began
    return answers


async def _call(http: aiohttp.ClientSession, url: str, key: str, pixels: Any, name: str, index: int, answers: Answers) -> None:
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": pixels.tolist()}]}
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": name}
    end, why = time.monotonic() + ANSWER_S_MAX, ""
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            async with http.post(url, json=body, headers=headers) as response:
                if response.status == 200:
                    answered = await response.json()
                    answers.labels[index] = int(next(o for o in answered["outputs"] if o["name"] == "label")["data"][0])
                    answers.versions[answered["model_version"]] += 1
                    answers.receipts.append(response.headers["modelmarket-receipt"])
                    answers.latencies_ms.append((time.monotonic() - began) * 1000)
                    return
                why = f"{response.status}: {(await response.text())[:300]}"
                if response.status < 500 and response.status != 429:
                    raise DemoFailed(f"call {name} was refused with {why}")
        except (aiohttp.ClientError, TimeoutError) as e:
            why = f"{type(e).__name__}: {e}"
        answers.retries += 1
        await asyncio.sleep(0.2)
    raise DemoFailed(f"call {name} was never answered: {why}")
