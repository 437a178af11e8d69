"""Kafka, the registry, a ClickHouse that can be killed, workers that can be paused, and a writer of usage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli.prepare import prepare_log
from events.facts import usage
from events.log.client import LogFull, Reader, Writer
from events.log.schemas import open_codec
from events.process.passwords import SET_UP
from events.process.settings import Settings
from infra.launcher import Stack
from infra.launcher.ports import free_block
from projections.ingest.clickhouse import ClickHouse
from projections.tables import apply_tables
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess
from tests.support.polling import WITHIN_S, eventually, is_ready
from tests.support.stacks import kill_stack

_DEFAULTS = {
    name: {k: f.default for k, f in cls.model_fields.items() if not f.is_required()}
    for name, cls in vars(usage).items()
    if name.startswith("Invocation")
}


class Worker:
    """One `projections.worker` of a test."""

    def __init__(self, environment: dict[str, str], settings: Settings, index: int, log: Path) -> None:
        self.index, self._settings, self.log = index, settings, log
        command = [sys.executable, "-m", "projections.worker", "--index", str(index)]
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def ready(self) -> None:
        def runs_and_is_ready() -> bool:
            assert self.process.poll() is None, f"the worker ended:\n{self.tail()}"
            return is_ready(self._settings.worker_health_port(self.index))

        eventually(runs_and_is_ready, "the worker is ready")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:]


class UsageStack:
    """`settings.data` holds everything. Use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.stack = settings, Stack(settings)
        self.environment = {
            **os.environ,
            "MODELMARKET_STACK": settings.stack,
            "MODELMARKET_DATA": str(settings.folder),
            "MODELMARKET_BASE_PORT": str(settings.base_port),
            "MODELMARKET_CLICKHOUSE_USER": "ingest",  # of the workers, which this is the environment of
            "MODELMARKET_KAFKA_SASL_USERNAME": "worker",
            "MODELMARKET_WORKER_SESSION_S": str(settings.worker_session_s),
            "TZ": "UTC",
        }
        self.engine = ClickHouseProcess.of(settings)
        self.workers: list[Worker] = []
        self._shared: Worker | None = None

    def start(self) -> None:
        self.stack.up({"kafka", "registry"})
        prepare_log(self.settings)
        self.engine.start()
        apply_tables(self.settings)
        self.codec, _ = open_codec(self.settings, Reader(self.settings, "test"))
        self.writer = Writer(self.settings, "test", linger_ms=5)

    def stop(self) -> None:
        self._shared = None
        self.end_own_workers()
        self.engine.end()
        kill_stack(self.stack)

    def worker(self, index: int = 0, *, ready: bool = True) -> Worker:
        worker = Worker(self.environment, self.settings, index, self.settings.folder / f"worker-{index}.log")
        self.workers.append(worker)
        if ready:
            worker.ready()
        return worker

    def end_own_workers(self) -> None:
        """All but that of `working`."""
        for worker in self.workers:
            if worker is not self._shared and worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.kill()

    @contextmanager
    def working(self) -> Generator[Worker]:
        """Worker 0 runs, and goes on afterwards for the next who needs one: until `rest`."""
        if self._shared is None or self._shared.process.poll() is not None:
            self._shared = self.worker(0)
        yield self._shared

    def rest(self) -> None:
        """No worker of `working` runs; its next one starts anew."""
        if self._shared is not None:
            self._shared.stop()
            self._shared = None

    @property
    def clickhouse(self) -> ClickHouse:
        return ClickHouse(self.settings)

    # --- facts

    def settled(self, n: int, tenant: str = "", **given: Any) -> bytes:
        body = {
            **_DEFAULTS["InvocationSettled"],
            **_metered(tenant or f"tenant-{n % 40}", n),
            "invocation_key": random.randbytes(32) if n % 5 == 0 else b"",
            "team": "vision",
            "key_id": f"key-{n % 50}",
            "user": f"user-{n % 70}",
            "region": "local",
            "labels": {"env": "prod", "ключ": "значение"} if n % 3 == 0 else {},
            "provider": "acme",
            "model": f"model-vision-core-digits{n % 4}",
            "model_version": f"1.0.{n % 3}",
            "deployment": "d",
            "operation": "infer",
            "outcome": "succeeded" if n % 11 else "failed",
            "status": 200 if n % 11 else 500,
            "shadow": n % 13 == 0,
            "bytes_in": n * 7,
            "latency_us": 1000 + n % 977,
        }
        return self.codec.encode_dict("InvocationSettled", {**body, **given})

    def refused(self, n: int, tenant: str = "") -> bytes:
        body = {"key_id": "k", "user": "u", "region": "local", "model": "model-vision-core-digits1", "operation": "infer", "status": 429}
        return self.codec.encode_dict(
            "InvocationRefused",
            {
                **_DEFAULTS["InvocationRefused"],
                **_metered(tenant or f"tenant-{n % 40}", n),
                **body,
                "error_code": "limit",
                "count": n % 9 + 1,
            },
        )

    def voided(self, n: int, event_id: str, tenant: str) -> bytes:
        body = {"voided": event_id, "model": "m", "model_version": "1.0.0", "reason": "not acknowledged"}
        return self.codec.encode_dict("InvocationVoided", {**_DEFAULTS["InvocationVoided"], **_metered(tenant, n), **body})

    def other(self, n: int) -> bytes:
        model = {"model": "m", "model_version": "1.0.0"}
        if n % 2:
            return self.codec.encode_dict(
                "InvocationAbandoned",
                {**_DEFAULTS["InvocationAbandoned"], **_metered("t", n), **model, "opened": str(uuid.uuid4()), "reason": "dead"},
            )
        who = {"key_id": "k", "user": "u", "provider": "p", "operation": "chat", "output_tokens_max": 77}
        return self.codec.encode_dict("InvocationOpened", {**_DEFAULTS["InvocationOpened"], **_metered("t", n), **model, **who})

    def write(self, *values: bytes | None, partition: int | None = None) -> None:
        """Each value's own tenant is not looked at: partitions are given or dealt by turns."""
        for i, value in enumerate(values):
            p = i % 4 if partition is None else partition
            while True:
                try:
                    self.writer.append_then(lambda at, error: None, "usage", b"k", value, None, p)
                    break
                except LogFull:
                    time.sleep(0.05)
        assert self.writer.flush(60)

    def mixed(self, count: int) -> list[bytes]:
        """Facts of every kind, interleaved as on a normal day."""
        start = random.randrange(1 << 30)
        return [
            self.refused(start + i) if i % 5 == 2 else self.other(start + i) if i % 50 == 7 else self.settled(start + i)
            for i in range(count)
        ]

    # --- waiting

    def rows(self) -> int:
        """Of the raw table, copies included."""
        return int(self.clickhouse.value("SELECT toInt64(count()) AS n FROM usage"))

    def rows_of(self, partition: int) -> int:
        """As `rows`, of one partition."""
        sql = f"SELECT toInt64(count()) AS n FROM usage WHERE kafka_partition = {partition} FORMAT JSONEachRow"
        return int(json.loads(self.clickhouse.raw(sql))["n"])

    def ends(self) -> dict[int, int]:
        reader = Reader(self.settings, "ends")
        try:
            return {p: end for (_, p), end in reader.end_offsets("usage").items()}
        finally:
            reader.close()

    def caught_up(self, within_s: float = WITHIN_S) -> None:
        """The table has an offset for every record that is on the log now; some worker must run."""
        ends = self.ends()
        sql = "SELECT kafka_partition AS p, toInt64(uniqExact(kafka_offset)) AS n FROM usage GROUP BY p"

        def is_there() -> bool:
            assert any(w.process.poll() is None for w in self.workers), f"no worker runs:\n{self.workers[-1].tail()}"
            have = {r["p"]: r["n"] for r in self.clickhouse.rows(sql)}
            return all(have.get(p, 0) >= end for p, end in ends.items())

        eventually(is_there, f"the table has {ends}", within_s)


@contextmanager
def running_usage_stack(folder: Path, **settings: Any) -> Generator[UsageStack]:
    with free_block() as base_port:
        stack = UsageStack(Settings(stack="test", base_port=base_port, data=folder, kafka_sasl_username=SET_UP, **settings))
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()


def _metered(tenant: str, n: int) -> dict[str, Any]:
    return {
        "event_id": str(uuid.uuid4()),
        "occurred_at": time.time_ns() // 1000,
        "producer": "gateway-1",
        "tenant": tenant,
        "epoch": "e-1",
        "sequence": n + 1,
        "previous_sha256": random.randbytes(32),
    }
