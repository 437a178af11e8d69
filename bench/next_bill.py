"""What the log's side of a tenant's next bill costs when there is ten times as much old usage: from its checkpoint, and from offset 0.

Both tenants have a bill, and as much new usage. Nothing but the log is asked; bills are posted as a biller posts them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx

from bench.month_end import ZONE, UsageWriter, fix_cuts, make_tenants, wait_until
from events.log.client import Reader
from events.log.schemas import open_codec
from infra.launcher import Stack
from projections.bills.bill_from_log import Due, LogRound
from projections.bills.checkpoints.files import CheckpointFiles
from projections.bills.decided_folds import DecidedFolds
from projections.bills.decided_for_bills import usage_partition
from rating.bill import Bill

NAME = "next_bill"
PARTS = ("kafka", "registry", "clickhouse", "prepare", "commands", "relay")
OLD, NEW, TIMES, QUICK = 30_000, 1_000, 5, 10
LARGER = 10


def run(stack: Stack, quick: bool) -> list[dict[str, Any]]:
    stack.up(PARTS)
    small = _Tenant.named("small", OLD // (QUICK if quick else 1))
    large = _Tenant.named("large", LARGER * small.old, other_than=usage_partition(small.name))
    admin = stack.environment()["MODELMARKET_ADMIN_KEY"]
    tenants, settings = [small, large], stack.settings
    reader = Reader(settings, "bench")
    codec, log_id = open_codec(settings, reader)
    usage = UsageWriter(settings, codec, log_id, asyncio.run(make_tenants(settings, admin, [t.name for t in tenants])))
    folds, files = DecidedFolds(reader, codec), CheckpointFiles(settings.folder / "bench-checkpoints")

    def write(counts: list[int]) -> None:
        for tenant, count in zip(tenants, counts, strict=True):
            for _ in range(count):
                usage.write(tenant.name)
        usage.flush()

    def cut(number: int) -> None:
        asyncio.run(fix_cuts(settings, admin, [t.name for t in tenants]))
        wait_until(lambda: all(number in folds.bills().of(t.name).cuts for t in tenants), "the cuts are on the log")

    def bill(tenant: _Tenant, number: int, checkpoints: CheckpointFiles | None) -> tuple[LogRound, Bill, float]:
        log = LogRound(reader, codec, folds, checkpoints)
        decided = log.decided.of(tenant.name)
        _ = log.prices, log.producers
        began = time.perf_counter()
        ((_, bills),) = log.bills({tenant.name: Due(decided, range(max(1, number - 1), number + 1))})
        assert not isinstance(bills, Exception), bills
        return log, bills[-1], time.perf_counter() - began

    write([t.old for t in tenants])
    cut(1)
    for tenant in tenants:
        log, first, _ = bill(tenant, 1, files)
        _post(settings.commands, admin, first)
        log.keep(first)
    write([NEW for _ in tenants])
    cut(2)
    folds.bills().first.clear()  # else this bill is computed from offset 0 as well, once a month and partition
    took, read = dict[tuple[str, bool], float](), dict[tuple[str, bool], int]()
    for tenant in tenants:
        for kept in (True, False):
            rounds = [bill(tenant, 2, files if kept else None) for _ in range(TIMES)]
            assert len({b.canonical() for _, b, _ in rounds}) == 1
            took[tenant.name, kept] = statistics.median(s for _, _, s in rounds)
            read[tenant.name, kept] = rounds[-1][0].usage_read
    usage.close()
    return [
        {
            "metric": f"the next bill, {NEW:,} new facts, {how}: {read[small.name, kept]:,} and {read[large.name, kept]:,} records read",
            "value": round(took[large.name, kept] * 1000, 1),
            "unit": "ms",
            "baseline": f"a tenth of the old usage {took[small.name, kept] * 1000:.1f} ms",
            "ratio": took[large.name, kept] / took[small.name, kept],
            "target": "flat" if kept else "",
        }
        for kept, how in ((True, f"{large.old:,} old ones, from the checkpoint"), (False, "from offset 0"))
    ]


class _Tenant:
    def __init__(self, name: str, old: int) -> None:
        self.name, self.old = name, old

    @classmethod
    def named(cls, text: str, old: int, other_than: int = -1) -> _Tenant:
        """In another partition of usage than the other one."""
        return cls(next(n for n in (f"{text}-{i}" for i in range(100)) if usage_partition(n) != other_than), old)


def _post(commands: str, admin: str, bill: Bill) -> None:
    cut = bill.cut
    body = {
        "number": cut["number"],
        "cut_event_id": cut["event_id"],
        "digest": bill.digest().hex(),
        "lines": bill.line_bodies(),
        "total_micros": bill.total_micros,
        "facts": bill.facts,
        "producers_open": bill.producers_open,
        "excluded": bill.excluded,
    }
    period = datetime.now(ZoneInfo(ZONE)).strftime("%Y-%m")
    url = f"{commands}/v1/bills/{cut['tenant']}/{period}/complete"
    answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {admin}"}, timeout=60)
    assert answer.is_success, answer.text
