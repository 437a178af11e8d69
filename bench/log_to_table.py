"""Usage facts per second from Kafka through one worker into ClickHouse, guard and hash included, and how soon a fact can be queried.

Baseline: the stock Faust agent of `bench/baselines/stock_faust.py` on the same log, broker and engine in the same run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from bench.baselines.stock_faust import TABLE as STOCK_TABLE
from events.facts.usage import InvocationSettled
from events.log.client import LogFull, Reader, Writer
from events.log.record import Coordinate
from events.log.schemas import open_codec
from events.process.settings import Settings
from events.schema.codec import Codec
from infra.launcher import Stack
from projections.ingest.clickhouse import ClickHouse
from projections.usage.table import create_table

NAME = "log_to_table"
FACTS, FACTS_QUICK = 2_000_000, 100_000
PACE, PACED_S, PACED_S_QUICK = 5_000, 20, 5
STOCK_S = 20.0
"""How long the baseline may run; its rate does not change with time."""
WAIT_S_MAX = 300.0
SETTLED_S_MAX = 60.0
TENANTS, TEMPLATES = 500, 5_000


def run(stack: Stack, quick: bool) -> list[dict[str, Any]]:
    stack.up({"kafka", "registry", "clickhouse", "prepare"})
    settings = stack.settings
    codec, _ = open_codec(settings, Reader(settings, "bench"))
    frames, clickhouse = _templates(codec), ClickHouse(settings)
    facts = FACTS_QUICK if quick else FACTS
    _produce(settings, frames, facts)
    stock = _stock(stack, clickhouse, 5.0 if quick else STOCK_S)
    rate, cpu = _drain(stack, clickhouse, facts)
    _settled(clickhouse)
    late_ms = _paced(settings, clickhouse, frames, PACED_S_QUICK if quick else PACED_S)
    size = sum(len(f) for _, f in frames) / len(frames)
    return [
        {
            "metric": f"usage facts from log to table, one worker, {size:.0f} B each",
            "value": round(rate),
            "unit": "facts/s",
            "baseline": "stock Faust agent, batches of 1 000",
            "ratio": rate / stock if stock else 0.0,
            "target": "≥ 170 000, ≥ 25×",
        },
        {"metric": "stock Faust agent", "value": round(stock), "unit": "facts/s"},
        *({"metric": f"CPU of {part} per million facts", "value": round(s, 2), "unit": "s"} for part, s in cpu.items()),
        {"metric": f"produce to queryable at {PACE} facts/s, p50", "value": round(_at(late_ms, 0.5)), "unit": "ms"},
        {"metric": f"produce to queryable at {PACE} facts/s, p99", "value": round(_at(late_ms, 0.99)), "unit": "ms", "target": "≤ 500"},
    ]


# --- facts


def _templates(codec: Codec) -> list[tuple[bytes, bytes]]:
    """(key, frame) of facts as a busy gateway writes them; the event_id is put in when one is sent."""
    defaults = {k: f.default for k, f in InvocationSettled.model_fields.items() if not f.is_required()}
    now, chance, out = time.time_ns() // 1000, random.Random(1), list[tuple[bytes, bytes]]()
    for n in range(TEMPLATES):
        tenant = f"tenant-{n % TENANTS}"
        body = {
            **defaults,
            "event_id": str(uuid.uuid4()),
            "occurred_at": now + n,
            "producer": "gateway-1",
            "correlation_id": uuid.uuid4().hex,
            "tenant": tenant,
            "epoch": str(uuid.UUID(int=7)),
            "sequence": n + 1,
            "previous_sha256": chance.randbytes(32),
            "department": "research",
            "team": "vision",
            "project": f"project-{n % 20}",
            "key_id": f"key-{n % 900}",
            "user": f"user-{n % 2000}",
            "region": "local",
            "labels": {"env": "prod"},
            "provider": "acme",
            "model": f"model-vision-core-digits{n % 40}",
            "model_version": f"1.{n % 3}.0",
            "deployment": f"deployment-{n % 40}",
            "replica": f"replica-{n % 8}",
            "route": "stable",
            "operation": "infer",
            "outcome": "succeeded",
            "status": 200,
            "bytes_in": 3000 + n % 500,
            "bytes_out": 200 + n % 50,
            "cpu_us": 300 + n % 90,
            "queue_us": 500 + n % 300,
            "latency_us": 2500 + n % 900,
            "batch_size": 1 + n % 16,
        }
        out.append((tenant.encode(), codec.encode_dict("InvocationSettled", body)))
    return out


def _fresh(frame: bytes, n: int) -> bytes:
    """The same fact of another execution: `event_id` is the first field, 36 characters after its length."""
    return frame[:6] + str(uuid.UUID(int=(n << 64) | random.getrandbits(62))).encode() + frame[42:]


def _produce(settings: Settings, frames: list[tuple[bytes, bytes]], facts: int) -> None:
    writer = Writer(settings, "bench", linger_ms=20, extra={"batch.size": 1 << 20})
    for n in range(facts):
        key, frame = frames[n % len(frames)]
        _append(writer, key, _fresh(frame, n), _delivered)
    assert writer.close(60)


def _append(writer: Writer, key: bytes, frame: bytes, delivered: Any) -> None:
    while True:
        try:
            writer.append_then(delivered, "usage", key, frame)
            return
        except LogFull:
            time.sleep(0.01)


# --- rates


def _drain(stack: Stack, clickhouse: ClickHouse, facts: int) -> tuple[float, dict[str, float]]:
    """Facts per second from the first rows to the last, and CPU seconds per million facts of each part."""
    parts = ("kafka", "clickhouse", "worker-0")
    threading.Thread(target=lambda: stack.up({"worker-0"}), daemon=True).start()
    began, first, seen = time.monotonic(), 0.0, 0
    at_first, cpu_first = 0, dict[str, float]()
    while seen < facts:
        assert time.monotonic() - began < WAIT_S_MAX, f"{seen} of {facts} facts came"
        seen = int(clickhouse.value("SELECT toInt64(count()) AS n FROM usage"))
        if seen and not first:
            first, at_first, cpu_first = time.monotonic(), seen, {p: _cpu_s(stack, p) for p in parts}
        time.sleep(0.2)  # asking costs the engine too
    took = time.monotonic() - first
    counted = max(1, facts - at_first)
    cpu = {p: (_cpu_s(stack, p) - cpu_first[p]) / counted * 1e6 for p in parts}
    return counted / took, cpu


def _stock(stack: Stack, clickhouse: ClickHouse, seconds: float) -> float:
    # The same columns; hashes as the hex that JSON can carry, and no collapsing, since the agent has no offsets to offer.
    clickhouse.command(create_table(STOCK_TABLE).replace("FixedString(32)", "String").replace("ReplacingMergeTree(readable)", "MergeTree"))
    with (stack.paths.logs / "stock-faust.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "bench.baselines.stock_faust"], env=stack.environment(), stdout=log, stderr=log)
    try:
        end, first, at_first, seen = time.monotonic() + WAIT_S_MAX, 0.0, 0, 0
        while time.monotonic() < end and (not first or time.monotonic() - first < seconds):
            assert process.poll() is None, (stack.paths.logs / "stock-faust.log").read_text(errors="replace")[-2000:]
            seen = int(clickhouse.value(f"SELECT toInt64(count()) AS n FROM {STOCK_TABLE}"))
            if seen and not first:
                first, at_first = time.monotonic(), seen
            time.sleep(0.1)
        return (seen - at_first) / (time.monotonic() - first) if first else 0.0
    finally:
        process.kill()
        process.wait(10)
        clickhouse.command(f"DROP TABLE {STOCK_TABLE}")


def _cpu_s(stack: Stack, part: str) -> float:
    pid = stack.pid(part)
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- freshness


def _settled(clickhouse: ClickHouse) -> None:
    """Until the engine has merged what the drain left: freshness is measured under steady load, not right after a backlog."""
    end = time.monotonic() + SETTLED_S_MAX
    while time.monotonic() < end and clickhouse.value("SELECT toInt64(count()) AS n FROM system.merges"):
        time.sleep(0.5)


def _paced(settings: Settings, clickhouse: ClickHouse, frames: list[tuple[bytes, bytes]], seconds: int) -> list[float]:
    """Milliseconds from handing a fact to the producer until a query counts it, while other queries run."""
    sent = dict[tuple[int, int], float]()
    visible: list[tuple[float, dict[int, int]]] = []
    stop = threading.Event()
    watchers = [threading.Thread(target=_watch, args=(settings, visible, stop)), threading.Thread(target=_ask, args=(settings, stop))]
    for w in watchers:
        w.start()
    writer = Writer(settings, "bench-paced", linger_ms=1)
    writer.append("usage", frames[0][0], _fresh(frames[0][1], 0)).result(30)  # a new producer asks for its id first
    began = time.perf_counter()
    for n in range(PACE * seconds):
        due = began + n / PACE
        while time.perf_counter() < due:
            time.sleep(0.001)
        key, frame = frames[n % len(frames)]
        if n % 20:
            _append(writer, key, _fresh(frame, n), _delivered)
        else:
            _append(writer, key, _fresh(frame, n), _recording_delivery(sent, time.perf_counter()))
    assert writer.close(30)
    time.sleep(3)
    stop.set()
    for w in watchers:
        w.join(30)
    late = list[float]()
    for (partition, offset), at in sent.items():
        seen = next((when for when, newest in visible if newest.get(partition, -1) >= offset), None)
        assert seen is not None, f"usage/{partition}/{offset} was not queryable 3 s after the end"
        late.append(1000 * (seen - at))
    return late


def _delivered(where: Coordinate | None, error: Exception | None) -> None:
    assert error is None, error


def _recording_delivery(sent: dict[tuple[int, int], float], at: float) -> Any:
    def delivered(where: Coordinate | None, error: Exception | None) -> None:
        assert where is not None, error
        sent[where.partition, where.offset] = at

    return delivered


def _watch(settings: Settings, visible: list[tuple[float, dict[int, int]]], stop: threading.Event) -> None:
    """Asks for what is new and only for that: the measuring query must not be the load."""
    clickhouse, reader = ClickHouse(settings), Reader(settings, "bench-watch")
    newest = {p: end - 1 for (_, p), end in reader.end_offsets("usage").items()}
    while not stop.is_set():
        fresh = " OR ".join(f"(kafka_partition = {p} AND kafka_offset > {o})" for p, o in newest.items())
        rows = clickhouse.rows(f"SELECT kafka_partition AS p, toInt64(max(kafka_offset)) AS o FROM usage WHERE {fresh} GROUP BY p")
        newest |= {int(r["p"]): int(r["o"]) for r in rows}
        visible.append((time.perf_counter(), dict(newest)))
        time.sleep(0.02)


def _ask(settings: Settings, stop: threading.Event) -> None:
    """An analyst with a dashboard: metering of one tenant, all the time."""
    clickhouse, n = ClickHouse(settings), 0
    sql = "SELECT model, sum(calls) AS calls FROM metering_daily WHERE tenant = {tenant:String} GROUP BY model"
    while not stop.is_set():
        n += 1
        clickhouse.rows(sql, {"tenant": f"tenant-{n % TENANTS}"})
        time.sleep(0.25)


def _at(values: list[float], quantile: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(quantile * len(ranked)))]
