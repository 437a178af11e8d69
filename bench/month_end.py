"""All bills of a month's end: many tenants, one partition hot; from the first cut to the last issued bill, by one biller.

Usage is written as one gateway writes it, chained and signed, before the biller starts. Baseline: the log's side of one bill by itself, times
the tenants.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp

from events.facts.fact import NO_HASH
from events.facts.meters import METERS, READINGS
from events.facts.topics import TOPICS
from events.facts.usage import InvocationSettled
from events.log.client import LogFull, Reader, Writer
from events.log.partitioner import partition_of
from events.log.record import Coordinate
from events.log.schemas import open_codec
from events.process.clock import now_us
from events.process.settings import Settings
from events.process.signing_keys import SigningKey, signing_key
from events.producers.batch_proof import BATCH_MAX, EPOCH_PROOF, batch_proofs
from events.producers.epoch_key import certify
from events.schema.codec import Codec
from infra.launcher import Stack
from projections.bills.bill_from_log import Due, LogRound
from projections.ingest.clickhouse import ClickHouse

NAME = "month_end"
PARTS = ("kafka", "registry", "clickhouse", "prepare", "commands", "relay", "worker-0")
FACTS, TENANTS, QUICK = 10_000_000, 1_000, 100
HOT_SHARE = 0.7
"""Of all facts, in one partition."""
CONNECTIONS, ALONE = 16, 3
WAIT_S_MAX = 3600.0
BOOK, ZONE, EPOCH, PRODUCER = "month-end", "Asia/Shanghai", "month-end", "gateway-bench"
COMMON = {"region": "local", "provider": "acme", "model": "model-vision-core-digits", "model_version": "1.0.0", "deployment": "d"}
MEASURED = {"operation": "infer", "outcome": "succeeded", "status": 200, "calls": 1, "bytes_in": 3000, "bytes_out": 200, "cpu_us": 300}


def run(stack: Stack, quick: bool) -> list[dict[str, Any]]:
    stack.up(PARTS)
    settings, facts, count = stack.settings, FACTS // (QUICK if quick else 1), TENANTS // (10 if quick else 1)
    reader, clickhouse = Reader(settings, "bench"), ClickHouse(settings)
    codec, log_id = open_codec(settings, reader)
    admin = stack.environment()["MODELMARKET_ADMIN_KEY"]
    tenants = [f"tenant-{n:05}" for n in range(count)]
    keys = asyncio.run(make_tenants(settings, admin, tenants))
    usage = UsageWriter(settings, codec, log_id, keys)
    for tenant in _chosen(tenants, facts):
        usage.write(tenant)
    usage.close()
    wait_until(lambda: int(clickhouse.value("SELECT toInt64(count()) FROM usage")) >= facts, "usage is in the table")
    began = time.monotonic()
    stack.up({"biller"})
    ends = reader.end_offsets("usage")
    verified = "SELECT sum(at) FROM (SELECT max(kafka_offset) AS at FROM usage_verified GROUP BY kafka_partition)"
    wait_until(lambda: int(clickhouse.value(verified)) >= sum(ends.values()), "usage is verified")
    verify_s = time.monotonic() - began
    began = time.monotonic()
    asyncio.run(fix_cuts(settings, admin, tenants))
    issued = "SELECT uniqExact(key) FROM history WHERE topic = 'bills' AND fact = 'BillIssued'"
    wait_until(lambda: int(clickhouse.value(issued)) >= count, "all bills are issued")
    took = time.monotonic() - began
    peak = _peak_mib(stack)
    alone = [_alone(reader, codec, tenant) for tenant in random.Random(2).sample(tenants, ALONE)]
    billed = "SELECT sum(JSONExtractInt(body, 'facts', 'claimed')) FROM history WHERE topic = 'bills' AND fact = 'BillIssued'"
    assert int(clickhouse.value(billed)) == facts, "every fact is billed once"
    one = sorted(alone)[len(alone) // 2]
    return [
        {
            "metric": f"first cut to last bill: {count:,} tenants, {facts:,} facts, {HOT_SHARE:.0%} in one partition",
            "value": round(took, 1),
            "unit": "s",
            "baseline": f"the log's side of one bill by itself {one:.1f} s, × {count:,}",
            "ratio": took / (one * count),
            "target": "≤ 600 at 10⁷" if not quick else "",
        },
        {"metric": "the same, a fact", "value": round(took / facts * 1e6, 1), "unit": "µs"},
        {"metric": "verified before, with the biller's start", "value": round(facts / verify_s), "unit": "facts/s"},
        {"metric": "the biller's memory at its peak", "value": round(peak), "unit": "MiB"},
    ]


def wait_until(condition: Any, why: str) -> None:
    end = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < end, f"not within {WAIT_S_MAX:.0f} s: {why}"
        time.sleep(0.5)


def _peak_mib(stack: Stack) -> float:
    status = Path(f"/proc/{stack.pid('biller')}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def _alone(reader: Reader, codec: Codec, tenant: str) -> float:
    began = time.monotonic()
    log = LogRound(reader, codec)
    ((_, bills),) = log.bills({tenant: Due(log.decided.of(tenant), [1])})
    assert not isinstance(bills, Exception), bills
    return time.monotonic() - began


# --- what people decide


async def make_tenants(settings: Settings, admin: str, tenants: list[str]) -> dict[str, str]:
    """Makes them, with a price for everything; tenant → the id of its key."""
    keys = dict[str, str]()
    prices = [
        {"model": "*", "meter": m, "amount_micros": 1000, "per_units": 1 if m == "calls" else 1_000_000}
        for m in METERS
        if READINGS[m].measured
    ]
    async with _session(admin) as session:
        await _post(session, f"{settings.commands}/v1/price-books/{BOOK}/versions", {"prices": prices})
        names = iter(tenants)

        async def make() -> None:
            for tenant in names:
                body = {"tenant": tenant, "display_name": tenant, "price_book": BOOK, "timezone": ZONE}
                await _post(session, f"{settings.commands}/v1/tenants", body)
                key = await _post(session, f"{settings.commands}/v1/tenants/{tenant}/keys", {"scopes": ["invoke"]})
                keys[tenant] = key["key_id"]

        await asyncio.gather(*(make() for _ in range(CONNECTIONS)))
    return keys


async def fix_cuts(settings: Settings, admin: str, tenants: list[str]) -> None:
    period, names = datetime.now(ZoneInfo(ZONE)).strftime("%Y-%m"), iter(tenants)
    async with _session(admin) as session:

        async def cut() -> None:
            for tenant in names:
                await _post(session, f"{settings.commands}/v1/bills/{tenant}/{period}/cut", None)

        await asyncio.gather(*(cut() for _ in range(CONNECTIONS)))


def _session(admin: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {admin}"}, connector=aiohttp.TCPConnector(limit=CONNECTIONS))


async def _post(session: aiohttp.ClientSession, url: str, body: Any) -> dict[str, Any]:
    async with session.post(url, json=body, headers={"Idempotency-Key": str(uuid.uuid4())}) as answer:
        assert answer.status < 300, await answer.text()
        return await answer.json()


# --- usage


def _chosen(tenants: list[str], facts: int) -> Iterator[str]:
    """Whose the next fact is; of each partition's tenants any as often as another, and each at least once."""
    chance, partitions = random.Random(1), TOPICS["usage"].partitions
    groups: dict[int, list[str]] = {}
    for tenant in tenants:
        groups.setdefault(partition_of(tenant.encode(), partitions), []).append(tenant)
    hot, *others = groups.values()
    yield from tenants
    for _ in range(facts - len(tenants)):
        yield chance.choice(hot if chance.random() < HOT_SHARE else chance.choice(others))


class UsageWriter:
    """One epoch, written as a gateway writes it: a chain per tenant, one signature for a batch."""

    def __init__(self, settings: Settings, codec: Codec, log_id: str, keys: dict[str, str]) -> None:
        self._codec, self._log_id, self._keys = codec, log_id, keys
        self._key, self._writer = SigningKey.new(), Writer(settings, "bench", linger_ms=20, extra={"batch.size": 1 << 20})
        certificate = certify(signing_key(settings, "market"), log_id, PRODUCER, EPOCH, self._key.public)
        body = {
            "event_id": str(uuid.uuid4()),
            "occurred_at": now_us(),
            "producer": PRODUCER,
            "epoch": EPOCH,
            "log_id": log_id,
            "host": "h",
            "region": "local",
            "public_key": certificate.public_key,
            "certified_by": certificate.signed_by,
            "certificate": certificate.signature,
        }
        opened = codec.encode_dict("ProducerOpened", body)
        self._writer.append("producers", PRODUCER.encode(), opened, {"ce_type": b"ProducerOpened"}).result(30)
        self._defaults = {k: f.default for k, f in InvocationSettled.model_fields.items() if not f.is_required()}
        self._heads: dict[str, tuple[int, bytes]] = {}
        self._batch: list[tuple[str, bytes, bytes]] = []

    def write(self, tenant: str) -> None:
        sequence, previous = self._heads.get(tenant, (0, NO_HASH))
        body = {
            **self._defaults,
            **COMMON,
            **MEASURED,
            "event_id": str(uuid.uuid4()),
            "occurred_at": now_us(),
            "producer": PRODUCER,
            "tenant": tenant,
            "epoch": EPOCH,
            "sequence": sequence + 1,
            "previous_sha256": previous,
            "key_id": self._keys[tenant],
            "user": "u",
            "latency_us": 2500,
        }
        frame = self._codec.encode_dict("InvocationSettled", body)
        digest = sha256(frame).digest()
        self._heads[tenant] = sequence + 1, digest
        self._batch.append((tenant, frame, digest))
        if len(self._batch) == BATCH_MAX:
            self._send()

    def flush(self) -> None:
        """All that was written is on the log."""
        self._send()
        assert self._writer.flush(120)

    def close(self) -> None:
        self._send()
        assert self._writer.close(120)

    def _send(self) -> None:
        batch, self._batch = self._batch, []
        proofs = batch_proofs(self._key, self._log_id, EPOCH, [digest for _, _, digest in batch]) if batch else []
        for (tenant, frame, _), proof in zip(batch, proofs, strict=True):
            while True:
                try:
                    self._writer.append_then(_delivered, "usage", tenant.encode(), frame, {EPOCH_PROOF: proof})
                    break
                except LogFull:
                    time.sleep(0.01)


def _delivered(_at: Coordinate | None, error: Exception | None) -> None:
    assert error is None, error
