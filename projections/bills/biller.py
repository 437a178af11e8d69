"""Keeps running bills fresh and issues the fixed ones. `python -m projections.bills.biller`; any number of them may run, and divide the work.

Running bills are recomputed for tenants with new usage, about once a second; a tenant whose bill takes long is recomputed less
often, so that the largest tenant leaves time for the others.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, Protocol, assert_never, get_args

from events.alerts.alerts import Alerts
from events.alerts.fact_publisher import FactPublisher
from events.facts.topics import TOPICS
from events.log.client import LogUnavailable, Reader, Writer
from events.log.schemas import open_codec
from events.log.sign_in import ends_when_denied
from events.process.admin_key import admin_key
from events.process.clock import now_us
from events.process.health import serve_health
from events.process.json_logging import start_logging
from events.process.settings import Settings
from events.producers.opened_epochs import OpenedEpochs, market_keys
from events.schema.codec import Codec
from projections.bills import issue as bill_issue
from projections.bills.checkpoints.files import CheckpointFiles
from projections.bills.from_tables.decided_in_tables import NAMED_MAX as TENANTS_MAX
from projections.bills.from_tables.decided_in_tables import usage_partition
from projections.bills.issue import BillNumber, Deferred, Issued, Issuer, Outcome, Reason, cuts_without_bill
from projections.bills.running import RunningBill, RunningBills
from projections.bills.shared_partitions import SharedPartitions
from projections.ingest.clickhouse import ClickHouse, ClickHouseUnavailable
from projections.usage.held_decisions import HeldDecisions
from projections.usage.verifier import UsageVerifier

logger = logging.getLogger(__name__)
ROUND_S = 1.0
REST_FACTOR, REST_S_MAX = 4, 60.0
"""A tenant rests this many times as long as its last computation took, but never longer than this."""
RETRY_S_MAX = 30.0
"""A bill that cannot be issued is tried again after 1, 2, 4 … seconds, at most this."""
BEHIND_S_MAX = 300.0
"""A table that is behind one cut for longer does not catch up by itself."""
BEHIND_REMEDY = (
    "see to the workers. If they keep up, a row is missing in the middle: start the workers again, each begins where its table ends"
)
PRODUCER = "biller"
WAITING_REMEDY = "docs/operations.md, 'A bill does not come'; /healthz of the biller names every bill that waits"
WAITING_SHOWN_MAX = 1000
"""Bills that wait, named by /healthz; `lag` counts all."""
VERIFY_S_MAX, ISSUE_S_MAX, REFRESH_S_MAX = 2.0, 10.0, 2.0
"""Of each round: what one of them has left over it goes on with in the next."""
HELD_REMEDY = "docs/operations.md, 'Usage is held'"
DECIDED = "('prices', 'accounts', 'bills')"
NAMED_MAX = 200
"""Tenants that one question names; when something was decided on more of them, all running bills are computed again."""
ALL_PARTITIONS = frozenset(range(TOPICS["usage"].partitions))
HELD_ALERT_OF = 0
"""Whoever has this partition raises the one alert about held usage."""
NOBODY = "-"
"""The tenant of calls with an unknown key: never billed."""


class Share(Protocol):
    """Which part of the work is this biller's; each question says that it goes on."""

    def working(self) -> frozenset[int]:
        """Partitions of `usage`: their records, and the tenants who have theirs there."""
        ...


class Everything:
    """The share of a biller that is alone."""

    def working(self) -> frozenset[int]:
        return ALL_PARTITIONS


class Biller:
    """One round at a time; every round begins from what the tables say."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        issuer: Issuer,
        verifier: UsageVerifier,
        alerts: Alerts,
        clock: Callable[[], float] = time.monotonic,
        *,
        share: Share | None = None,
        restore_alerts: Callable[[], None] = lambda: None,
    ) -> None:
        """`restore_alerts`: called when partitions of another biller become this one's, with what that one raised."""
        self._clickhouse, self._issuer, self._verifier, self._alerts, self._clock = clickhouse, issuer, verifier, alerts, clock
        self._share, self._restore_alerts = share or Everything(), restore_alerts
        self._mine = ALL_PARTITIONS if share is None else frozenset[int]()
        self._running, self._decisions = RunningBills(clickhouse), HeldDecisions(clickhouse)
        self._taken = dict.fromkeys(ALL_PARTITIONS, 0)
        self._positions: dict[tuple[str, int], int] = {}
        """Topic and partition → the newest position of the store that its running bills know."""
        self._due: dict[tuple[str, int], None] = {}
        """Tenants whose running bill may have changed, with their partition, in the order in which they came."""
        self._rests: dict[str, float] = {}
        self._retries: dict[tuple[str, int], tuple[float, float]] = {}
        self._behind: dict[tuple[str, int], float] = {}
        """Since when the table has been behind a cut."""
        self._issuing: Iterator[tuple[BillNumber, Outcome]] | None = None
        """The bills that are due, and not looked at yet."""
        self._after = ""
        """The tenant after whom the next round looks for open cuts."""
        self.waiting: dict[str, str] = {}
        self.alarming: dict[str, str] = {}
        """Of those that wait for something that a person must mend: what it is."""
        self.issued = 0

    def round(self) -> None:
        self._take_over()
        self.verify()
        self.issue()
        self.refresh()

    def _take_over(self) -> None:
        """What is this biller's by now. What another one has done since is in the tables."""
        mine = self._share.working()
        lost, gained = self._mine - mine, mine - self._mine
        if lost or gained:
            self._mine, self._issuing = mine, None
        for partition in lost:
            self._verifier.forget(partition)
            self._taken[partition] = 0
        if lost:
            self._retries = {k: v for k, v in self._retries.items() if usage_partition(k[0]) in mine}
            self._due = {k: v for k, v in self._due.items() if k[1] in mine}
            self.waiting, self.alarming = (
                {name: why for name, why in of.items() if usage_partition(name.split("#")[0]) in mine}
                for of in (self.waiting, self.alarming)
            )
        if gained:
            self._positions = {}
            self._restore_alerts()

    # --- verifying

    def verify(self) -> None:
        """Verifies what came since, for a bounded time; raises an alert while usage is held that nobody has decided on."""
        end = self._clock() + VERIFY_S_MAX
        while not self._verifier.advance({p: self._issuer.ends.end(p) for p in self._mine}) and self._clock() < end:
            pass
        self._due |= dict.fromkeys(self._decisions.note())
        if HELD_ALERT_OF not in self._mine:
            return
        held = self._verifier.held()
        if held is None:
            self._alerts.resolve(PRODUCER, "usage.held")
        else:
            self._alerts.raise_(PRODUCER, "usage.held", held[:1000], HELD_REMEDY)

    # --- issuing

    def issue(self) -> None:
        """Goes on with the bills that are due, for a bounded time: then verifying and running bills have their turn."""
        if self._issuing is None:
            mine = (bill for bill in self._page() if usage_partition(bill[0]) in self._mine)
            due = [bill for bill in mine if self._clock() >= self._retries.get(bill, (0.0, 0.0))[0]]
            self._issuing = self._issuer.issue_all(due)
        began = self._clock()
        end = began + ISSUE_S_MAX
        try:
            for (tenant, number), outcome in self._issuing:
                self._note(tenant, number, outcome, self._clock() - began)
                self._share.working()
                began = self._clock()
                if began >= end:
                    break
            else:
                self._issuing = None
        except BaseException:
            self._issuing = None
            raise
        self._alert(whole=self._issuing is None)

    def _note(self, tenant: str, number: int, outcome: Outcome, took_s: float) -> None:
        name = f"{tenant}#{number}"
        match outcome:
            case Issued():
                self.issued += 1
                # The fact arrives through the log later; until then the cut still looks open.
                self._retries[tenant, number] = (self._clock() + 2.0, 0.5)
                self.waiting.pop(name, None)
                self.alarming.pop(name, None)
                logger.info("bill %s of %s: %s micro-units", number, tenant, outcome.bill.total_micros)
            case Deferred():
                alarming, message = outcome.alarming, outcome.message
                if self._stays_behind(tenant, number, outcome):
                    alarming, message = True, f"{message}, for {BEHIND_S_MAX / 60:.0f} minutes and more: {BEHIND_REMEDY}"
                _, pause = self._retries.get((tenant, number), (0.0, 0.5))
                pause = min(pause * 2, RETRY_S_MAX) if alarming else ROUND_S / 2
                rest = min(REST_S_MAX, REST_FACTOR * took_s)  # one that takes long leaves time for the others
                self._retries[tenant, number] = (self._clock() + max(pause, rest), pause)
                self.waiting[name] = outcome.reason
                self.alarming.pop(name, None)
                if alarming:
                    self.alarming[name] = message
                logger.log(logging.ERROR if alarming else logging.INFO, "bill %s of %s waits: %s", number, tenant, message)
            case _:
                assert_never(outcome)

    def _alert(self, *, whole: bool) -> None:
        """One alert for each reason and partition, however many bills wait for it; it is resolved when none of a whole round does."""
        reasons = dict[tuple[int, str], str]()
        for bill, message in self.alarming.items():
            tenant, number = bill.split("#")
            reasons.setdefault((usage_partition(tenant), self.waiting[bill]), f"bill {tenant}, number {number} waits: {message}")
        for (partition, reason), message in reasons.items():
            self._alerts.raise_(_subject(partition), f"bills.{reason}", message[:1000], WAITING_REMEDY)
        for partition, reason in product(self._mine, get_args(Reason)):
            if whole and (partition, reason) not in reasons:
                self._alerts.resolve(_subject(partition), f"bills.{reason}")

    def _stays_behind(self, tenant: str, number: int, outcome: Deferred) -> bool:
        """Workers catch up by themselves; a row that is missing below what they have written since does not."""
        if outcome.reason != "table_behind":
            self._behind.pop((tenant, number), None)
            return False
        return self._clock() - self._behind.setdefault((tenant, number), self._clock()) > BEHIND_S_MAX

    def _page(self) -> list[tuple[str, int]]:
        """The next open cuts in the order of tenants: each tenant gets its turn. What was noted of others between them is forgotten."""
        after, page = self._after, cuts_without_bill(self._clickhouse, self._after)
        full = len(page) >= bill_issue.CUTS_MAX
        self._after = page[-1][0] if full else ""
        there = set(page)
        self._retries = {k: v for k, v in self._retries.items() if k in there or k[0] <= after or (full and k[0] > self._after)}
        self._behind = {k: v for k, v in self._behind.items() if k in self._retries}
        known = {f"{tenant}#{number}" for tenant, number in self._retries}
        self.waiting = {k: v for k, v in self.waiting.items() if k in known}
        self.alarming = {k: v for k, v in self.alarming.items() if k in known}
        return page

    def state(self) -> dict[str, Any]:
        """For /healthz. A bill that waits is said, but it is no reason to start this process again."""
        waiting = dict(sorted(self.waiting.items())[:WAITING_SHOWN_MAX])
        detail = {"detail": "waiting: " + ", ".join(f"{k} {v}" for k, v in list(waiting.items())[:5])} if waiting else {}
        return {
            "status": "ready",
            "partitions": sorted(self._mine),
            "lag": len(self.waiting),
            "issued": self.issued,
            "waiting": waiting,
            "alarming": len(self.alarming),
            **detail,
        }

    # --- running bills

    def refresh(self) -> None:
        ends = {p: self._verifier.verified(p) for p in self._mine}
        for partition, end in ends.items():
            start = self._taken[partition]
            if end > start:
                self._due |= {(t, partition): None for t in sorted(self._tenants(partition, start, end))}
                self._taken[partition] = end
        self._due |= dict.fromkeys(self._decided_on())
        self._due = {(tenant, partition): None for tenant, partition in self._due if partition in self._mine}
        until = self._clock() + REFRESH_S_MAX
        while rested := [(t, p) for t, p in self._due if self._clock() >= self._rests.get(t, 0.0)]:
            partition = rested[0][1]
            tenants = [t for t, p in rested if p == partition][:TENANTS_MAX]
            self._recompute(tenants, ends[partition])
            for tenant in tenants:
                del self._due[tenant, partition]
            if self._clock() > until:
                return

    def _recompute(self, tenants: list[str], end: int) -> None:
        """Of tenants of one partition."""
        began, bills = self._clock(), list[RunningBill]()
        for tenant, found in self._running.compute_all(tenants, end, now_us()):
            if isinstance(found, Exception):
                # An error of one tenant's bill does not stop the others: it is logged, and tried again with its next usage.
                logger.error("no running bill for %s: %s", tenant, found)
            else:
                bills.append(found)
        self._running.store(bills, now_us())
        rest_until = self._clock() + min(REST_S_MAX, REST_FACTOR * (self._clock() - began))
        self._rests |= dict.fromkeys(tenants, rest_until)

    def _tenants(self, partition: int, start: int, end: int) -> set[str]:
        """Tenants with usage in [start, end) that no running bill has yet: none after a restart."""
        rows = self._clickhouse.rows(
            """SELECT u.tenant AS tenant FROM (
                SELECT tenant, max(kafka_offset) AS newest FROM usage_rows
                WHERE kafka_partition = {partition:Int32} AND kafka_offset >= {start:Int64} AND kafka_offset < {end:Int64} GROUP BY tenant
            ) AS u LEFT JOIN (SELECT tenant, max(usage_offset) AS known FROM bills_running_rows GROUP BY tenant) AS r ON u.tenant = r.tenant
            WHERE u.newest >= r.known""",
            {"partition": partition, "start": start, "end": end},
        )
        return {str(r["tenant"]) for r in rows} - {NOBODY, ""}

    def _decided_on(self) -> list[tuple[str, int]]:
        """Tenants whose running bill may say something else since prices, zones, cuts or records were decided on."""
        newest = self._clickhouse.rows(
            f"SELECT topic, kafka_partition, max(position) AS position FROM history_rows WHERE topic IN {DECIDED} GROUP BY topic, kafka_partition"
        )
        now = {(str(r["topic"]), int(r["kafka_partition"])): int(r["position"]) for r in newest}
        behind = {tp: self._positions.get(tp, -1) for tp, position in now.items() if position != self._positions.get(tp)}
        if not behind:
            return []
        where = " OR ".join(f"(topic = '{t}' AND kafka_partition = {p} AND position > {known})" for (t, p), known in behind.items())
        since = self._clickhouse.rows(
            f"SELECT DISTINCT key, topic = 'prices' OR startsWith(fact, 'Record') AS of_all FROM history_rows"
            f" WHERE kind = 'decided' AND ({where}) LIMIT {NAMED_MAX + 1}"
        )
        named = {} if len(since) > NAMED_MAX or any(r["of_all"] for r in since) else {"tenants": [str(r["key"]) for r in since]}
        mine = " WHERE tenant IN {tenants:Array(String)}" if named else ""
        if since:
            sql = f"SELECT tenant, max(usage_partition) AS usage_partition FROM bills_running_rows{mine} GROUP BY tenant ORDER BY tenant"
            due = [(str(r["tenant"]), int(r["usage_partition"])) for r in self._clickhouse.rows(sql, named)]
        else:
            due = []
        self._positions = now
        return due


def _subject(partition: int) -> str:
    """Of alerts about bills of tenants who have their usage there: each biller resolves those of its own partitions."""
    return f"{PRODUCER}, usage/{partition}"


def _restore(alerts: Alerts, codec: Codec, reader: Reader) -> None:
    alerts.restore(codec, (record.value for record in reader.read("alerts")))


@ends_when_denied
def main() -> int:
    start_logging("biller")
    settings = Settings()
    state: dict[str, Any] = {"status": "starting", "lag": None}
    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda signum, frame: stop.set())
    server = serve_health(settings.host, settings.biller_health_port, lambda: state)
    reader = Reader(settings, "biller")
    codec, log_id = open_codec(settings, reader)
    clickhouse = ClickHouse(settings)
    writer = Writer(settings, PRODUCER)
    alerts = Alerts(PRODUCER, FactPublisher(writer, codec))
    verifier = UsageVerifier(clickhouse, reader, OpenedEpochs(codec, log_id, market_keys(settings)))
    checkpoints = CheckpointFiles(settings.folder / "bills" / "checkpoints")
    issuer = Issuer(clickhouse, reader, codec, verifier, checkpoints, commands_url=settings.commands, admin_key=admin_key(settings))
    share = SharedPartitions(settings)
    restore = partial(_restore, alerts, codec, reader)
    biller = Biller(clickhouse, issuer, verifier, alerts, share=share, restore_alerts=restore)
    while not stop.wait(ROUND_S):
        try:
            biller.round()
            state = biller.state()
        except (ClickHouseUnavailable, LogUnavailable) as e:
            logger.warning("not now: %s", e)
            state = {"status": "starting", "lag": None, "detail": str(e)[:300]}
    share.close()
    server.shutdown()
    writer.close()
    reader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
