"""Waits until a condition is true. The deadline only ends a test that has failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import psutil
from confluent_kafka import KafkaException

T = TypeVar("T")
WITHIN_S = 180.0
"""Many times what is seen on a quiet machine: others are three times slower, and busy."""
POLL_S = 0.05


def eventually(condition: Callable[[], T], why: str | Callable[[], str], within_s: float = WITHIN_S) -> T:
    """The first true value of the condition; `why` is said when there is none. A server or a broker that does not answer yet and a process
    that ends meanwhile count as not yet true."""
    deadline = time.monotonic() + within_s
    while True:
        last: object
        try:
            last = found = condition()
            if found:
                return found
        except (httpx.HTTPError, psutil.Error, KafkaException) as e:
            last = e
        assert time.monotonic() < deadline, f"{why if isinstance(why, str) else why()}: not within {within_s:g} s; last {last!r}"
        time.sleep(POLL_S)


def seconds_until(condition: Callable[[], object], why: str, within_s: float = WITHIN_S) -> float:
    """How long `eventually` took: for tests of a promise about time."""
    began = time.monotonic()
    eventually(condition, why, within_s)
    return time.monotonic() - began


def health(port: int) -> dict[str, Any]:
    """What a process says of itself; `status` is "away" while nobody answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return {"status": "away", "message": "", "position": -1, "lag": -1}


def is_ready(port: int) -> bool:
    return health(port)["status"] == "ready"
