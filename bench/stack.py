"""Start to healthy, and what an idle stack takes: seconds and PSS per part."""

from __future__ import annotations

import time
from typing import Any

from infra.launcher import Stack

NAME = "stack"
SETTLE_S = 20
"""Memory is read when start-up's garbage is gone."""


def run(stack: Stack, quick: bool) -> list[dict[str, Any]]:
    began = time.monotonic()
    stack.up()
    first = time.monotonic() - began
    stack.down()
    began = time.monotonic()
    stack.up()
    again = time.monotonic() - began
    time.sleep(2 if quick else SETTLE_S)
    rows: list[dict[str, Any]] = [
        {"metric": "first start to healthy (empty data folder)", "value": round(first, 1), "unit": "s", "target": "≤ 45"},
        {
            "metric": "second start to healthy",
            "value": round(again, 1),
            "unit": "s",
            "baseline": "first start",
            "ratio": again / first,
            "target": "≤ 45",
        },
    ]
    parts = [p for p in stack.status().parts if p.pss_bytes]
    total = sum(p.pss_bytes for p in parts)
    rows += [
        {
            "metric": f"idle memory: {p.name}",
            "value": round(p.pss_bytes / 2**20),
            "unit": "MiB PSS",
            "baseline": "all parts",
            "ratio": p.pss_bytes / total,
        }
        for p in sorted(parts, key=lambda p: -p.pss_bytes)
    ]
    rows.append({"metric": "idle memory: all parts", "value": round(total / 2**20), "unit": "MiB PSS", "target": "≤ 3500"})
    return rows
