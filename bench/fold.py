"""A gateway's fold over a million account facts: from nothing, after kill -9 from its snapshot, and while it writes one (K5)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cli.prepare import prepare_log
from events.facts.topics import TOPICS
from events.log.chain import FIRST, ChainPosition
from events.log.client import LogFull, Reader, Writer
from events.log.fold_runner import FoldRunner
from events.log.heartbeat import Heartbeat
from events.log.partitioner import partition_of
from events.log.schemas import open_codec
from events.process.clock import now_us
from events.process.settings import Settings
from events.process.signing_keys import signing_key
from infra.launcher import Stack
from serving.gateway.routes import Routes
from serving.gateway.state import TOPICS as FOLDED

NAME = "fold"
TENANTS = 1_000
SIGNED_EVERY = 50
"""A relay under load signs one record of a batch."""
KEYS, KEYS_QUICK = 1_000_000, 20_000
READY_S_MAX = 240
SNAPSHOT_S = 1.0


def run(stack: Stack, quick: bool) -> list[dict[str, Any]]:
    stack.up({"kafka", "registry"})
    settings, keys = stack.settings, KEYS_QUICK if quick else KEYS
    prepare_log(settings)
    with _Relay(settings) as relay:
        relay.issue(keys)
        snapshot = settings.folder / "fold.snapshot"
        cold, process = _ready(settings, snapshot, relay)
        stall = _stall_file(snapshot)
        _wait(stall.exists, "a snapshot", relay)
        stalled_s = float(stall.read_text())
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        warm, process = _ready(settings, snapshot, relay)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    size = snapshot.stat().st_size
    return [
        {"metric": f"fold {keys:,} account facts from offset 0 until ready", "value": round(cold, 2), "unit": "s"},
        {
            "metric": "ready after kill -9, from the snapshot",
            "value": round(warm, 2),
            "unit": "s",
            "baseline": "from offset 0",
            "ratio": warm / cold,
            "target": "≤ 10",
        },
        {"metric": "longest stall of the event loop while a snapshot is written", "value": round(stalled_s * 1e3, 1), "unit": "ms"},
        {"metric": "facts folded per second", "value": round(keys / cold), "unit": "facts/s"},
        {"metric": "snapshot", "value": round(size / 2**20, 1), "unit": "MiB"},
    ]


class _Relay:
    """Writes what the relay would: chained key facts, and heartbeats on demand."""

    def __init__(self, settings: Settings) -> None:
        self.writer, reader = Writer(settings, "bench", linger_ms=20), Reader(settings, "bench")
        self.codec, _ = open_codec(settings, reader)
        self.key = signing_key(settings, "relay")
        self.position = 0
        self.sent: dict[str, int] = {}
        self.hashes: dict[str, bytes] = {}

    def __enter__(self) -> _Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def issue(self, keys: int) -> None:
        base = {"event_id": "0" * 36, "occurred_at": 1_790_000_000_000_000, "producer": "bench", "version": 1, "by": "bench"}
        for topic in FOLDED:
            for partition in range(TOPICS[topic].partitions):
                body = base | {"store": "bench", "previous_store": "", "previous_position": 0}
                self._send((topic, partition), b"bench", "StoreOpened", self.codec.encode_dict("StoreOpened", body, topic), signed=True)
        for n in range(keys):
            tenant = f"tenant-{n % TENANTS}"
            body = base | {
                "tenant": tenant,
                "key_id": f"key-{n}",
                "key_sha256": hashlib.sha256(b"%d" % n).hexdigest(),
                "user": f"user-{n % 50_000}",
                "scopes": ["invoke"],
            }
            frame = self.codec.encode_dict("ApiKeyIssued", body)
            at = "accounts", partition_of(tenant.encode(), TOPICS["accounts"].partitions)
            self._send(at, tenant.encode(), "ApiKeyIssued", frame, signed=n % SIGNED_EVERY == 0 or n >= keys - TENANTS)
        self.writer.flush(60)

    def _send(self, at: tuple[str, int], key: bytes, name: str, frame: bytes, *, signed: bool) -> None:
        topic, partition = at
        self.position += 1
        partition_key = f"{topic}/{partition}"
        chained = ChainPosition("bench", self.position, self.hashes.get(partition_key, FIRST))
        self.hashes[partition_key] = chained.sha256(key, frame)
        proof = chained.signed_headers(self.key, topic, partition, self.hashes[partition_key]) if signed else chained.headers
        headers = proof | {"ce_type": name.encode()}
        while True:
            try:
                self.writer.append_then(_delivered, topic, key, frame, headers, partition)
                break
            except LogFull:
                self.writer.flush(0.2)
        self.sent[partition_key] = self.position

    def heartbeat(self) -> None:
        heartbeat = Heartbeat("bench", self.position, self.sent, now_us())
        self.writer.append("heartbeats", heartbeat.key, heartbeat.to_json(), heartbeat.signed_headers(self.key)).result(10)


def _delivered(_at: object, error: Exception | None) -> None:
    if error is not None:
        raise error


def _ready(settings: Settings, snapshot: Path, relay: _Relay) -> tuple[float, subprocess.Popen[bytes]]:
    """Starts a process that folds; returns the seconds until it is ready, and the process."""
    flag = settings.folder / "fold.ready"
    flag.unlink(missing_ok=True)
    began = time.monotonic()
    environment = os.environ | {
        "MODELMARKET_BASE_PORT": str(settings.base_port),
        "MODELMARKET_DATA": str(settings.folder),
        "MODELMARKET_KAFKA_SASL_USERNAME": "ray",
    }
    process = subprocess.Popen([sys.executable, "-m", "bench.fold", str(snapshot), str(flag)], env=environment)
    _wait(flag.exists, "the fold", relay)
    return time.monotonic() - began, process


def _wait(condition: Any, what: str, relay: _Relay) -> None:
    end, heartbeat = time.monotonic() + READY_S_MAX, 0.0
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {READY_S_MAX} s")
        if time.monotonic() - heartbeat > 1:
            heartbeat = time.monotonic()
            relay.heartbeat()
        time.sleep(0.02)


def fold(snapshot: Path, flag: Path) -> None:
    """The process that is measured and killed."""
    settings = Settings()
    codec, log_id = open_codec(settings, Reader(settings, "bench-fold"))
    fold_runner = FoldRunner(settings, codec, log_id, FOLDED, Routes(), name="bench", snapshot=snapshot, snapshot_s=SNAPSHOT_S)
    fold_runner.start()
    if fold_runner.wait_caught_up(READY_S_MAX):
        flag.touch()
        asyncio.run(_watch(snapshot))


def _stall_file(snapshot: Path) -> Path:
    return snapshot.with_suffix(".stall")


async def _watch(snapshot: Path) -> None:
    """The delay that calls would have: by how much a sleep of one millisecond was longer, at most, until there is a snapshot."""
    worst = 0.0
    while not snapshot.exists():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - began - 0.001)
    part = _stall_file(snapshot).with_suffix(".part-stall")
    part.write_text(str(worst))
    part.rename(_stall_file(snapshot))
    while True:
        await asyncio.sleep(1)


if __name__ == "__main__":
    fold(Path(sys.argv[1]), Path(sys.argv[2]))
