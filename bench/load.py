"""Sends one HTTP request repeatedly on N kept-alive connections and measures how long each answer took.

A program of its own, so that its work is not counted as the gateway's: python -m bench.load PLAN, where PLAN is JSON on standard
input; the result is JSON on standard output. Closed loop: a connection sends when its last answer is complete.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import uvloop


@dataclass(frozen=True)
class Plan:
    host: str
    port: int
    path: str
    body: str
    headers: dict[str, str] = field(default_factory=dict[str, str])
    connections: int = 1
    seconds: float = 5.0
    warm_s: float = 1.0


@dataclass(frozen=True)
class Result:
    answers: int
    failures: int
    """Answers that were not 200, and connections that broke."""
    seconds: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    cpu_us: float
    """The generator's own, per answer."""

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds


class Caller(asyncio.Protocol):
    """One connection. Knows just enough HTTP: a status line, Content-Length, a body."""

    def __init__(self, request: bytes, run: Run) -> None:
        self._request, self._run = request, run
        self._data = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        data = self._data = self._data + data if self._data else data
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            return
        at = data.lower().find(b"content-length:", 0, head_end)
        size = int(data[at + 15 : data.find(b"\r", at)])
        if len(data) < head_end + 4 + size:
            return
        self._data = b""
        if self._run.took(data.startswith(b"HTTP/1.1 200"), time.perf_counter() - self._sent):
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.lost()


class Run:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.times: list[float] = []
        self.failures = 0
        self.open = plan.connections
        self.done = asyncio.get_running_loop().create_future()
        self.from_s = time.perf_counter() + plan.warm_s
        self.until_s = self.from_s + plan.seconds

    def took(self, good: bool, seconds: float) -> bool:
        now = time.perf_counter()
        if self.from_s <= now <= self.until_s:
            if good:
                self.times.append(seconds)
            else:
                self.failures += 1
        return now < self.until_s

    def lost(self) -> None:
        self.open -= 1
        if time.perf_counter() < self.until_s:
            self.failures += 1
        if not self.open and not self.done.done():
            self.done.set_result(None)


async def call(plan: Plan) -> Result:
    loop = asyncio.get_running_loop()
    head = {"Host": f"{plan.host}:{plan.port}", "Content-Length": str(len(plan.body.encode())), **plan.headers}
    lines = "".join(f"{k}: {v}\r\n" for k, v in head.items())
    request = f"POST {plan.path} HTTP/1.1\r\n{lines}\r\n{plan.body}".encode()
    run = Run(plan)
    for _ in range(plan.connections):
        await loop.create_connection(lambda: Caller(request, run), plan.host, plan.port)
    await asyncio.wait_for(run.done, plan.warm_s + plan.seconds + 20)
    times = sorted(run.times) or [float("nan")]
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_us = (used.ru_utime + used.ru_stime) * 1e6 / max(1, len(run.times))

    def at(share: float) -> float:
        return times[min(len(times) - 1, int(share * len(times)))] * 1000

    return Result(len(run.times), run.failures, plan.seconds, at(0.5), at(0.99), times[-1] * 1000, cpu_us)


def main() -> None:
    plan = Plan(**json.load(sys.stdin))
    result: dict[str, Any] = asdict(uvloop.run(call(plan)))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
