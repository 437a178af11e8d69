"""The log's side of a bill goes on from a checkpoint: it reads what is new, a lost or wrong one costs time only, and billers share the work (K21, K27)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from events.facts.meters import METERS, READINGS
from events.facts.topics import TOPICS
from events.process.passwords import clickhouse_password_file
from events.process.settings import Settings
from projections.bills import bill_from_log
from projections.bills.checkpoints.files import CheckpointFiles
from projections.bills.decided_for_bills import usage_partition
from projections.bills.issue import Deferred, Issued, Outcome, cuts_without_bill
from projections.bills.shared_partitions import SharedPartitions
from projections.bills.usage_spool import UsageSpool
from projections.bills.verify import verify
from rating.statement import Carried, StatementState
from tests.support.market import Market, month, running_market
from tests.support.polling import eventually
from tests.support.stacks import reached_from_elsewhere, signed_in

PARTITIONS = frozenset(range(TOPICS["usage"].partitions))
PRICED = {("*", meter): (1_000_000 if meter == "calls" else 0, 1) for meter in METERS if READINGS[meter].measured}
NEVER = 1 << 62
TAKEN_OVER_S_MAX = 10.0


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with running_market(tmp_path_factory.mktemp("checkpoints")) as market:
        yield market


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[UsageSpool]:
    """What each pass over a partition of usage read; and no tenant is computed twice by chance."""
    monkeypatch.setattr(bill_from_log, "RECHECKED_EVERY", NEVER)
    found, read = list[UsageSpool](), bill_from_log.read_usage

    def noted(*arguments: Any) -> UsageSpool:
        found.append(read(*arguments))
        return found[-1]

    monkeypatch.setattr(bill_from_log, "read_usage", noted)
    return found


def neighbours(market: Market, book: str, count: int) -> list[str]:
    """New tenants who have their usage in one partition, of which the first has two bills: every month's first bill that has one before it is
    computed from offset 0 as well, and theirs is that."""
    tenants = list[str]()
    while len(tenants) < count:
        tenant, _ = market.tenant(book)
        if not tenants or usage_partition(tenant) == usage_partition(tenants[0]):
            tenants.append(tenant)
    for tenant in (*tenants, tenants[0]):
        market.append(tenant, [market.settled(tenant) for _ in range(5)])
        market.issue(tenant, month())
    return tenants


def kept(market: Market, tenant: str) -> CheckpointFiles | None:
    files = CheckpointFiles(market.checkpoints)
    return files if files.checkpoint(usage_partition(tenant), tenant) is not None else None


def path_of(market: Market, tenant: str) -> Path:
    folder = market.checkpoints / str(usage_partition(tenant))
    before = {path: path.read_bytes() for path in folder.glob("*")}
    files = CheckpointFiles(market.checkpoints)
    checkpoint = files.checkpoint(usage_partition(tenant), tenant)
    assert checkpoint is not None
    files.discard(usage_partition(tenant), tenant)
    (path,) = before.keys() - set(folder.glob("*"))
    path.write_bytes(before[path])
    return path


def cut(market: Market, tenant: str, number: int) -> None:
    """Fixed, and nothing stands in the way of its bill."""
    market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
    market.fold_until(lambda: (tenant, number) in cuts_without_bill(market.clickhouse), "the cut")
    issuer = market.issuer()

    def ready() -> bool:
        decided = issuer._decided_so_far()  # pyright: ignore[reportPrivateUsage]
        ((_, found),) = issuer._ready([(tenant, number)], decided)  # pyright: ignore[reportPrivateUsage]
        return not isinstance(found, Deferred)

    market.fold_until(ready, "what was decided is in the tables")


def issued(market: Market, tenant: str, number: int) -> Outcome:
    cut(market, tenant, number)
    return market.issuer().issue(tenant, number)


def verified(market: Market, tenant: str) -> list[int]:
    """Calls that each issued bill claims; all are computed again from offset 0."""
    market.fold_until(lambda: tenant not in {t for t, _ in cuts_without_bill(market.clickhouse)}, "the bill came through the log")
    bills = verify(market.reader, market.codec, None, tenant, month())
    assert all(bill.agrees and bill.difference_micros == 0 for bill in bills), [bill.wrong for bill in bills]
    assert [bill.billed_micros for bill in bills] == [bill.facts["claimed"] * 1_000_000 for bill in bills]
    return [bill.facts["claimed"] for bill in bills]


def test_a_later_bill_reads_what_came_since_and_a_lost_or_torn_checkpoint_changes_nothing_but_that(
    market: Market, passes: list[UsageSpool]
) -> None:
    book = market.prices(PRICED)
    first, tenant = neighbours(market, book, 2)
    partition = usage_partition(tenant)
    market.append(first, [market.settled(first) for _ in range(40)])
    before = end(market, partition)
    market.append(tenant, [market.settled(tenant) for _ in range(3)])
    passes.clear()
    assert isinstance(issued(market, tenant, 2), Issued)
    (spool,) = passes
    since_own_cut = 5 + 40 + 3  # the first tenant's second bill, its usage since, and this tenant's
    assert spool.records == since_own_cut < before

    lost = path_of(market, tenant)
    for number, spoil in enumerate((lost.unlink, lambda: torn(lost)), 3):
        market.append(tenant, [market.settled(tenant)])
        spoil()
        passes.clear()
        assert isinstance(issued(market, tenant, number), Issued)
        (spool,) = passes
        assert spool.records == end(market, partition), "all of it, once"
        assert kept(market, tenant), "and not again"
    market.append(tenant, [market.settled(tenant)] * 2)
    passes.clear()
    assert isinstance(issued(market, tenant, 5), Issued)
    assert [spool.records for spool in passes] == [2], "the second has the first's bytes: a copy, and it counts as one"
    assert verified(market, tenant) == [5, 3, 1, 1, 1]
    market.recompute_as_a_stranger(tenant, 5)


def end(market: Market, partition: int) -> int:
    return market.reader.end_offsets("usage")["usage", partition]


def torn(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_what_reaches_back_is_read_from_the_beginning(market: Market, passes: list[UsageSpool]) -> None:
    _, tenant = neighbours(market, market.prices(PRICED), 2)
    frame = market.settled(tenant)
    market.append(tenant, [frame])
    assert isinstance(issued(market, tenant, 2), Issued)
    event_id = str(market.codec.decode(frame)[1]["event_id"])
    market.append(tenant, [frame, market.voided(tenant, event_id), market.settled(tenant), market.settled(tenant)])
    passes.clear()
    assert isinstance(issued(market, tenant, 3), Issued)
    assert [spool.records for spool in passes][1:] == [end(market, usage_partition(tenant))], "first what is new, then all"
    assert verified(market, tenant) == [5, 1, 1], "two calls, and one that was billed is taken back"
    market.recompute_as_a_stranger(tenant, 3)


def test_a_forged_checkpoint_holds_the_bill_and_is_gone(market: Market, passes: list[UsageSpool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to the biller's folder can make one with a right digest. The tables do not agree; nor does the log from offset 0."""
    _, tenant, rechecked = neighbours(market, market.prices(PRICED), 3)
    for number, of, reason in ((2, tenant, "sources_disagree"), (2, rechecked, "checkpoint_differs")):
        files = CheckpointFiles(market.checkpoints)
        real = files.checkpoint(usage_partition(of), of)
        assert real is not None
        files.keep(usage_partition(of), replace(real, statement=with_one_more(real.statement)))
        market.append(of, [market.settled(of)])
        if of == rechecked:
            monkeypatch.setattr(bill_from_log, "RECHECKED_EVERY", 1)
        outcome = issued(market, of, number)
        assert isinstance(outcome, Deferred) and (outcome.reason, outcome.alarming) == (reason, True), outcome
        assert kept(market, of) is None
        passes.clear()
        assert isinstance(market.issuer().issue(of, number), Issued)
        assert passes[0].records == end(market, usage_partition(of))
        assert verified(market, of) == [5, 1]


def with_one_more(state: StatementState) -> StatementState:
    """A record that the bill before would have carried, and the next one claims."""
    (bucket, quantities), *_ = state.usage.items()
    carried = Carried(state.until, bucket.model, bucket.model_version, bucket.provider, quantities)
    return replace(state, carried=(*state.carried, carried))


class Killed(BaseException):
    """As by kill -9: nothing runs after it."""


@pytest.mark.parametrize("step", ["before it is kept", "in the middle of the file"])
def test_killed_after_a_bill_was_posted_the_next_one_is_the_same(
    market: Market, passes: list[UsageSpool], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    _, tenant = neighbours(market, market.prices(PRICED), 2)
    market.append(tenant, [market.settled(tenant)])
    cut(market, tenant, 2)

    renamed = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.name == "unread":  # the partition's own file, before the bill is posted
            return renamed(path, target)
        raise Killed

    def killed_before(*_arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        if step == "before it is kept":
            patched.setattr(CheckpointFiles, "keep", killed_before)
        else:
            patched.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            market.issuer().issue(tenant, 2)
    market.append(tenant, [market.settled(tenant) for _ in range(2)])
    market.fold_until(lambda: (tenant, 2) not in cuts_without_bill(market.clickhouse), "the bill was posted")
    passes.clear()
    assert isinstance(issued(market, tenant, 3), Issued)
    assert passes[0].records == end(market, usage_partition(tenant)), "the bill before has no checkpoint"
    assert verified(market, tenant) == [5, 1, 2]


# --- several billers


class BillerProcess:
    """A biller on another host than the rest of the stack: on other ports, told where they are."""

    def __init__(self, market: Market, ports: int) -> None:
        settings = market.settings
        elsewhere = {
            **reached_from_elsewhere(settings, "biller"),
            "base_port": str(settings.base_port + ports),
            "data": str(settings.folder),
            "stack": settings.stack,
            "registry_url": settings.registry,
            "clickhouse_url": settings.clickhouse,
            "clickhouse_user": "bills",
            "clickhouse_password": clickhouse_password_file(settings.folder, "bills").read_text().strip(),
            "command_url": settings.commands,
        }
        self.port = Settings(stack=settings.stack, base_port=settings.base_port + ports, data=settings.folder).biller_health_port
        environment = {**os.environ, **{f"MODELMARKET_{name.upper()}": value for name, value in elsewhere.items()}}
        self.log = settings.folder / f"biller-{ports}.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen([sys.executable, "-m", "projections.bills.biller"], env=environment, stdout=out, stderr=out)

    def state(self) -> dict[str, Any]:
        assert self.process.poll() is None, f"it ended:\n{self.log.read_text(errors='replace')[-3000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as answer:
                return json.loads(answer.read())
        except OSError:
            return {}

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


def test_two_billers_divide_the_tenants_and_a_killed_ones_are_the_others(market: Market) -> None:
    book = market.prices(PRICED)
    tenants = [market.tenant(book)[0] for _ in range(6)]
    while len({usage_partition(t) for t in tenants}) < len(PARTITIONS) - 1:
        tenants.append(market.tenant(book)[0])
    with ExitStack() as ended:
        one, two = (BillerProcess(market, ports) for ports in (20, 23))
        for biller in (one, two):
            ended.callback(lambda process=biller.process: process.poll() is None and process.kill())

        def divided() -> bool:
            parts = [frozenset[int](biller.state().get("partitions", ())) for biller in (one, two)]
            return all(parts) and not parts[0] & parts[1] and parts[0] | parts[1] == PARTITIONS

        eventually(divided, lambda: f"they divide the partitions: {one.state()}, {two.state()}", 400)
        for tenant in tenants:
            market.append(tenant, [market.settled(tenant) for _ in range(3)])
            market.command("POST", f"/v1/bills/{tenant}/{month()}/cut")
        market.fold_until(lambda: one.state().get("issued", 0) + two.state().get("issued", 0) > 0, "bills are being issued")
        one.kill()
        for tenant in tenants:
            assert verified(market, tenant) == [3]
        eventually(lambda: frozenset[int](two.state()["partitions"]) == PARTITIONS, lambda: f"it has all partitions: {two.state()}")
        two.process.terminate()
        assert two.process.wait(60) == 0
    for tenant in tenants:
        sql = "SELECT count() FROM bills WHERE status = 'issued' AND tenant = {t:String}"
        assert market.clickhouse.value(sql, {"t": tenant}) == 1


MEMBER = """
import sys, time
from pathlib import Path
from events.process.passwords import clickhouse_password_file
from events.process.settings import Settings
from projections.bills.shared_partitions import SharedPartitions
share = SharedPartitions(Settings(stack=sys.argv[1], base_port=int(sys.argv[2]), data=Path(sys.argv[3]), kafka_sasl_username="biller"))
while True:
    print(len(share.working()), flush=True)
    time.sleep(0.1)
"""


def test_a_member_that_is_killed_loses_its_partitions_within_ten_seconds(market: Market) -> None:
    settings = signed_in(market.settings, "biller")
    arguments = [settings.stack, str(settings.base_port), str(settings.folder)]
    other = subprocess.Popen([sys.executable, "-c", MEMBER, *arguments], stdout=subprocess.PIPE, text=True)
    share = SharedPartitions(settings)
    try:
        assert other.stdout is not None
        lines = iter(other.stdout.readline, "")
        eventually(lambda: 0 < int(next(lines)) < len(PARTITIONS) and 0 < len(share.working()) < len(PARTITIONS), "both have some", 300)
        other.kill()
        began = time.monotonic()
        eventually(lambda: share.working() == PARTITIONS, "all are the other's")
        assert time.monotonic() - began <= TAKEN_OVER_S_MAX
    finally:
        other.kill()
        other.wait(10)
        share.close()
