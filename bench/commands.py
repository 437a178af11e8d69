"""Registrations per second over HTTP, and how soon a registered model is in the catalog.

Every registration carries its own Idempotency-Key, as the SDK sends it, and is durable (flushed to disk) before it is answered.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import aiohttp

from infra.launcher import Stack

NAME = "commands"
PARTS = ("kafka", "registry", "clickhouse", "prepare", "commands", "relay", "worker-0", "queries")
CONNECTIONS = 32
VISIBLE_S_MAX = 30.0
POLL_S = 0.02
COMPLIANCE = {"licence": "MIT", "data_sources": ["bench"], "data_level": "public"}


def run(stack: Stack, quick: bool) -> list[dict[str, Any]]:
    stack.up(PARTS)
    key = stack.environment()["MODELMARKET_ADMIN_KEY"]
    return asyncio.run(_measure(stack, key, 300 if quick else 6000, 20 if quick else 200))


async def _measure(stack: Stack, key: str, many: int, seen: int) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
        commands, queries = stack.settings.commands, stack.settings.queries
        async with session.post(f"{commands}/v1/tenants", json={"tenant": "bench", "display_name": "Bench"}) as answer:
            assert answer.status == 201, await answer.text()
        alone_s = [await _register(session, commands, f"alone{i}") for i in range(min(many, 200))]
        names = iter(f"m{i}" for i in range(many))
        took_s: list[float] = []

        async def registers() -> None:
            for name in names:
                took_s.append(await _register(session, commands, name))

        began = time.perf_counter()
        await asyncio.gather(*(registers() for _ in range(CONNECTIONS)))
        rate = many / (time.perf_counter() - began)
        visible_s = [await _visible(session, commands, queries, f"seen{i}") for i in range(seen)]
    one = 1 / (sum(alone_s) / len(alone_s))
    return [
        {
            "metric": f"registrations over HTTP, {CONNECTIONS} connections",
            "value": round(rate),
            "unit": "/s",
            "baseline": "one connection",
            "ratio": rate / one,
            "target": "≥ 300",
        },
        {"metric": "registrations over HTTP, one connection", "value": round(one), "unit": "/s"},
        {"metric": f"registration p99, {CONNECTIONS} connections", "value": round(1000 * _at(took_s, 0.99), 1), "unit": "ms"},
        {"metric": "registered to visible in the catalog, p50", "value": round(1000 * _at(visible_s, 0.5)), "unit": "ms"},
        {
            "metric": "registered to visible in the catalog, p99",
            "value": round(1000 * _at(visible_s, 0.99)),
            "unit": "ms",
            "target": "≤ 2000",
        },
    ]


async def _register(session: aiohttp.ClientSession, commands: str, name: str) -> float:
    body = {
        "domain": "bench",
        "team": "bench",
        "name": name,
        "scenario": "bench",
        "task": "none",
        "compliance": COMPLIANCE,
        "tenant": "bench",
    }
    began = time.perf_counter()
    async with session.post(f"{commands}/v1/models", json=body, headers={"Idempotency-Key": str(uuid.uuid4())}) as answer:
        assert answer.status == 201, await answer.text()
        await answer.read()
    return time.perf_counter() - began


async def _visible(session: aiohttp.ClientSession, commands: str, queries: str, name: str) -> float:
    await _register(session, commands, name)
    began = time.perf_counter()
    while time.perf_counter() - began < VISIBLE_S_MAX:
        async with session.get(f"{queries}/v1/catalog/model-bench-bench-{name}") as answer:
            await answer.read()
            if answer.status == 200:
                return time.perf_counter() - began
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"{name} was not visible within {VISIBLE_S_MAX} s")


def _at(values: list[float], quantile: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(quantile * len(ranked)))]
