"""The command side on a real log, as processes that can be killed; and an oracle that reads Kafka with nothing of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import httpx

from commands.processor.idempotency_store import ANSWERED
from commands.store.event_store import open_store
from events.log.client import Reader, Writer
from events.log.schemas import publish
from events.log.topics import apply_topics
from events.process.settings import Settings
from infra.launcher import Stack

ADMIN = "mk_" + "a" * 43
ROOT = Path(__file__).resolve().parents[2]
HEALTHY_S_MAX = 60.0
DECIDED = {"models": 4, "deployments": 4, "accounts": 4, "prices": 1, "bills": 4, "producers": 1}


def until(true: Callable[[], Any], what: str, timeout_s: float = HEALTHY_S_MAX) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def environment(settings: Settings, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MODELMARKET_")}
    mine = {"STACK": settings.stack, "BASE_PORT": str(settings.base_port), "DATA": str(settings.folder), "ADMIN_KEY": ADMIN}
    return kept | {f"MODELMARKET_{k}": v for k, v in (mine | more).items()}


@dataclass
class Process:
    """One of our processes; `kill` is kill -9."""

    module: str
    settings: Settings
    more: dict[str, str] = field(default_factory=dict[str, str])
    running: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.settings.folder / f"{self.module}.log"

    def start(self) -> Process:
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", self.module], cwd=ROOT, env=environment(self.settings, **self.more), stdout=log, stderr=log
            )
        return self

    def kill(self, how: int = signal.SIGKILL) -> None:
        assert self.running is not None
        self.running.send_signal(how)
        self.running.wait(30)

    def ended(self, timeout_s: float = 60) -> int:
        assert self.running is not None
        return self.running.wait(timeout_s)

    def stop(self) -> None:
        if self.running is not None and self.running.poll() is None:
            self.kill(signal.SIGTERM)


def health(port: int) -> dict[str, Any] | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2).json()
    except (httpx.HTTPError, ValueError):
        return None


def ready(port: int) -> bool:
    said = health(port)
    return said is not None and said["status"] == "ready"


@contextmanager
def prepared_log(settings: Settings) -> Iterator[Stack]:
    """A broker and a registry with topics and schemas."""
    stack = Stack(settings)
    try:
        stack.up({"kafka", "registry"})
        apply_topics(settings)
        writer, reader = Writer(settings, "test"), Reader(settings, "test")
        publish(settings, writer, reader)
        writer.close()
        reader.close()
        yield stack
    finally:
        stack.down()


class Http:
    """The command API as a caller sees it: no answer is ever a 5xx unless the test expects one."""

    def __init__(self, settings: Settings) -> None:
        self._client = httpx.Client(base_url=settings.commands, timeout=60)

    def __call__(self, method: str, path: str, key: str = ADMIN, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        return self._client.request(method, path, headers=headers, **more)

    def ok(self, method: str, path: str, key: str = ADMIN, **more: Any) -> dict[str, Any]:
        answer = self(method, path, key, **more)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def key(self, tenant: str, *scopes: str, user: str, **more: Any) -> str:
        return str(self.ok("POST", f"/v1/tenants/{tenant}/keys", json={"scopes": list(scopes), "user": user, **more})["api_key"])


@dataclass(frozen=True)
class OnLog:
    topic: str
    partition: int
    offset: int
    headers: dict[str, bytes]
    key: bytes
    value: bytes

    @property
    def position(self) -> int:
        return int(self.headers["position"])


def read_log(settings: Settings, *topics: str) -> list[OnLog]:
    """Everything on these topics, read with confluent_kafka alone."""
    consumer = ck.Consumer({"bootstrap.servers": settings.kafka, "group.id": "oracle", "enable.auto.commit": False})
    try:
        ends: dict[tuple[str, int], int] = {}
        for topic in topics:
            for p in range(DECIDED.get(topic, 1)):
                _, high = consumer.get_watermark_offsets(ck.TopicPartition(topic, p), timeout=10)  # type: ignore[misc]
                if high:
                    ends[topic, p] = high
        consumer.assign([ck.TopicPartition(t, p, 0) for t, p in ends])
        found: list[OnLog] = []
        end = time.monotonic() + 60
        while ends:
            assert time.monotonic() < end, f"unread: {ends}"
            for m in consumer.consume(5000, 0.5):
                assert m.error() is None, m.error()
                at = (str(m.topic()), int(m.partition() or 0))
                found.append(OnLog(*at, m.offset() or 0, dict(m.headers() or []), m.key() or b"", m.value() or b""))  # type: ignore[arg-type]
                if (m.offset() or 0) >= ends.get(at, 1 << 60) - 1:
                    del ends[at]
        return found
    finally:
        consumer.close()


@dataclass
class Chained:
    """What the oracle found: first records in position order, and how many copies."""

    records: dict[int, OnLog]
    copies: int


def check_chain(settings: Settings) -> Chained:
    """Every decided partition, by the rule of K4 alone: each record is the next one or an exact copy. Raises AssertionError."""
    records: dict[int, OnLog] = {}
    copies = 0
    by_partition: defaultdict[tuple[str, int], list[OnLog]] = defaultdict(list)
    for r in read_log(settings, *DECIDED):
        if r.headers.get("position", b"").isdigit():
            by_partition[r.topic, r.partition].append(r)
    for tp, found in by_partition.items():
        seen = 0
        for r in sorted(found, key=lambda r: r.offset):
            if r.position <= seen:
                first = records[r.position]
                assert (first.key, first.value, first.headers) == (r.key, r.value, r.headers), f"{tp}: another record under {r.position}"
                copies += 1
                continue
            assert int(r.headers["previous"]) == seen, f"{tp}: {r.position} follows {r.headers['previous']!r}, but {seen} was last"
            seen, records[r.position] = r.position, r
    assert len({r.headers["store"] for r in records.values()}) <= 1
    return Chained(records, copies)


def check_complete(settings: Settings) -> Chained:
    """The chain, and that the log holds exactly what the store decided, byte for byte in the store's order."""
    chained = check_chain(settings)
    store = open_store(settings)
    after, decided = 0, dict[int, bytes]()
    while page := store.notifications(after):
        decided |= {e.position: e.state for e in page if e.name != ANSWERED}
        after = page[-1].position
    store.close()
    assert set(chained.records) == set(decided)
    for position, record in chained.records.items():
        assert decided[position].endswith(record.value), f"position {position} differs"
    return chained
