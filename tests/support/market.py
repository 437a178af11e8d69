"""A market without callers or workers: real log, registry, tables, commands and relay; the test writes usage and drives the sinks itself.

Driving them by hand decides which record is folded when, in how large a chunk, and after which restart: no sleep, no chance.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx

from events.alerts.alerts import Alerts
from events.alerts.fact_publisher import FactPublisher
from events.facts.topics import TOPICS
from events.log.client import Reader, Writer
from events.log.partitioner import partition_of
from events.log.record import Record
from events.log.schemas import open_codec
from events.process.admin_key import admin_key
from events.process.clock import now_us
from events.process.passwords import OPERATOR, kafka_password_file
from events.process.settings import Settings
from events.producers.opened_epochs import OpenedEpochs, market_keys
from projections.bills.biller import Biller
from projections.bills.checkpoints.files import CheckpointFiles
from projections.bills.issue import Issuer, cuts_without_bill
from projections.catalog.record_alerts import RecordAlerts, StallAlerts
from projections.catalog.sink import HISTORY_TOPICS, HistorySink
from projections.dead_letters.sink import DeadLetterPublisher, DeadLetterSink
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import Chunk
from projections.ingest.table_offsets import dense_end, first_missing
from projections.usage.held_decisions import HeldDecisions
from projections.usage.insert_plans import InsertPlans
from projections.usage.sink import UsageSink
from projections.usage.verifier import UsageVerifier
from tests.support.polling import eventually
from tests.support.signed_usage import SignedUsage
from tests.support.stacks import running_stack

ROOT = Path(__file__).resolve().parents[2]

MODEL = "model-vision-acme-digits"
METERED = {"calls": 1, "bytes_in": 100, "bytes_out": 50, "cpu_us": 777}

HELD = 0
"""The one partition of usage in which tests leave unreadable records: no bill of any tenant there is issued (K9)."""


def month() -> str:
    """The period that runs in the tenants' zone."""
    return datetime.now(UTC).astimezone(ZoneInfo("Asia/Shanghai")).strftime("%Y-%m")


class Market:
    """One stack and everything a test does with it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reader, self.clickhouse = Reader(settings, "market"), ClickHouse(settings)
        self.clickhouse_of_biller = ClickHouse(settings.model_copy(update={"clickhouse_user": "bills"}))
        self.read_schemas()
        self.writer = Writer(settings, "market")
        self.admin = admin_key(settings)
        self.commands = httpx.Client(base_url=settings.commands, headers={"Authorization": f"Bearer {self.admin}"}, timeout=30)
        self.usage = SignedUsage(self.settings, self.log_id)
        self.key_ids: dict[str, str] = {}
        """Tenant → the key that its calls come with."""
        self.checkpoints = settings.folder / "bills" / "checkpoints"
        self.restart()

    def close(self) -> None:
        self.writer.close()
        self.reader.close()
        self.commands.close()

    def read_schemas(self) -> None:
        """A codec that knows every schema of the log, and those that come later; it may have asked for one of them too early."""
        self.codec, self.log_id = open_codec(self.settings, self.reader)

    # --- the sinks, driven by hand

    def restart(self) -> None:
        """New sinks that know nothing but what the tables say, as after a kill -9."""
        publisher = DeadLetterPublisher(self.writer, self.codec, "projections")
        stalls = StallAlerts(self.clickhouse, RecordAlerts(self.clickhouse, self.codec, self.writer))
        self.sinks: dict[str, Any] = {
            topic: HistorySink(topic, self.codec, self.clickhouse, self.reader, publisher.publish, lambda: None, stalls)
            for topic in HISTORY_TOPICS
        }
        self.sinks["usage"] = UsageSink(
            self.clickhouse,
            InsertPlans(self.reader, self.codec.schemas),
            lambda partition, fence: first_missing(self.clickhouse, self.reader, "usage", "usage", partition, fence=fence),
            publisher.publish,
            lambda: None,
        )
        self.sinks["dead-letters"] = DeadLetterSink(
            self.clickhouse,
            self.codec,
            lambda table, partition, fence: first_missing(self.clickhouse, self.reader, table, "dead-letters", partition, fence=fence),
            lambda: None,
        )
        self.verifier = UsageVerifier(
            self.clickhouse_of_biller, self.reader, OpenedEpochs(self.codec, self.log_id, market_keys(self.settings))
        )
        self._next: dict[tuple[str, int], int] = {}

    def fold(self, *topics: str, chance: random.Random | None = None, records_max: int = 1 << 30) -> None:
        """Brings the tables up to the log's end now. With `chance`: in chunks of random size, partitions in random order."""
        for topic in topics or tuple(self.sinks):
            sink, ends = self.sinks[topic], self.reader.end_offsets(topic)
            for _, p in ends.keys() - self._next.keys():
                self._next[topic, p] = sink.resume(p)
            by_partition: dict[int, list[Record]] = {}
            if any(self._next[tp] < end for tp, end in ends.items()):
                starts = {p: self._next[topic, p] for _, p in ends}
                for r in self.reader.read(topic, starts, {p: end for (_, p), end in ends.items()}):
                    by_partition.setdefault(r.partition, []).append(r)
            while by_partition:
                p = chance.choice(list(by_partition)) if chance else next(iter(by_partition))
                size = chance.randint(1, 40) if chance else 5000
                records, by_partition[p] = by_partition[p][:size], by_partition[p][size:]
                sink.write(sink.prepare([Chunk(topic, p, records)]))
                self._next[topic, p] = records[-1].offset + 1
                if not by_partition[p]:
                    del by_partition[p]
        if not topics:
            self.verify_usage()

    def fold_until(self, condition: Callable[[], object], why: str | Callable[[], str]) -> None:
        """Folds until the condition holds."""

        def folded() -> object:
            self.fold()
            return condition()

        eventually(folded, why)

    # --- commands, by people

    def command(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.commands.request(method, path, json=body, headers={"Idempotency-Key": str(uuid.uuid4())})
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def tenant(self, book: str, scopes: tuple[str, ...] = ("read",), *, held: bool = False, **terms: str) -> tuple[str, str]:
        """A new tenant and a key of it. With `held` in the partition of usage whose bills wait for a person, else in another."""
        names = (f"t{uuid.uuid4().hex[:12]}" for _ in itertools.count())
        tenant = next(n for n in names if (partition_of(n.encode(), TOPICS["usage"].partitions) == HELD) is held)
        self.command("POST", "/v1/tenants", {"tenant": tenant, "display_name": tenant, "price_book": book, **terms})
        return tenant, self.key(tenant, scopes)

    def key(self, tenant: str, scopes: tuple[str, ...] = ("read",)) -> str:
        """A new key, which the tenant's calls come with from now on; it is on the log, as before any call with it."""
        key = self.command("POST", f"/v1/tenants/{tenant}/keys", {"scopes": list(scopes)})
        key_id = self.key_ids[tenant] = str(key["key_id"])
        eventually(lambda: self._is_on_log("accounts", key_id), f"key {key_id} is on the log")
        return str(key["api_key"])

    def _is_on_log(self, topic: str, text: str) -> bool:
        return any(text.encode() in (record.value or b"") for record in self.reader.read(topic))

    def prices(self, prices: dict[tuple[str, str], tuple[int, int]], book: str = "") -> str:
        """Publishes a version of a book, from now on; returns the book."""
        book = book or f"b{uuid.uuid4().hex[:12]}"
        price_list = [
            {"model": m, "meter": meter, "amount_micros": amount, "per_units": per} for (m, meter), (amount, per) in prices.items()
        ]
        self.command("POST", f"/v1/price-books/{book}/versions", {"prices": price_list})
        return book

    # --- usage, as a gateway writes it

    def settled(self, tenant: str, **more: Any) -> bytes:
        """The frame of an `InvocationSettled`; not yet written."""
        epoch = more.pop("epoch", "epoch-1")
        return self._frame("InvocationSettled", tenant, epoch, **{**METERED, "outcome": "succeeded", "status": 200, **more})

    def voided(self, tenant: str, event_id: str) -> bytes:
        return self._frame("InvocationVoided", tenant, "epoch-1", voided=event_id, model=MODEL, model_version="1.0.0", reason="kafka_slow")

    def _frame(self, name: str, tenant: str, epoch: str, **more: Any) -> bytes:
        """The next record of the epoch's chain; unreadable ones belong into an epoch of their own."""
        if epoch not in self.usage.opened:
            self.open_epoch(epoch)
        sequence, previous = self.usage.next_place(epoch, tenant)
        body: dict[str, Any] = {
            "event_id": str(uuid.uuid4()),
            "occurred_at": now_us(),
            "producer": "gateway-1",
            "tenant": tenant,
            "epoch": epoch,
            "sequence": sequence,
            "previous_sha256": previous,
        }
        if name == "InvocationSettled":
            body |= {"key_id": self.key_ids.get(tenant, "k"), "user": "u", "region": "local", "provider": "acme"}
            body |= {"model": MODEL, "model_version": "1.0.0", "deployment": MODEL, "operation": "infer", "invocation_key": b""}
        return self.usage.follow(epoch, tenant, self.codec.encode_dict(name, body | more))

    def open_epoch(self, epoch: str, producer: str = "gateway-1") -> None:
        """As a gateway does before its first call."""
        body = self.usage.opening(epoch, producer)
        frame = self.codec.encode_dict("ProducerOpened", body)
        self.writer.append("producers", producer.encode(), frame, {"ce_type": b"ProducerOpened"}).result(10)

    def append(self, tenant: str, frames: Sequence[bytes]) -> None:
        """Each signed alone, as by an epoch that wrote no other record at that moment."""
        futures = [self.writer.append("usage", tenant.encode(), f, {"ce_type": b"x", **self.usage.proof(f)}) for f in frames]
        for future in futures:
            future.result(10)

    # --- bills

    def issuer(self) -> Issuer:
        return Issuer(
            self.clickhouse_of_biller,
            self.reader,
            self.codec,
            self.verifier,
            CheckpointFiles(self.checkpoints),
            commands_url=self.settings.commands,
            admin_key=self.admin,
        )

    def biller(self) -> Biller:
        return Biller(self.clickhouse_of_biller, self.issuer(), self.verifier, Alerts("biller", FactPublisher(self.writer, self.codec)))

    def verify_usage(self) -> None:
        """As the biller does in each round; the tables must be folded."""
        while not self.verifier.advance({p: dense_end(self.clickhouse, "usage", p) for p in range(TOPICS["usage"].partitions)}):
            pass
        HeldDecisions(self.clickhouse_of_biller).note()

    def issue(self, tenant: str, period: str) -> dict[str, Any]:
        """Fixes a cut and lets a biller issue it; returns the issued bill's body, read from Kafka."""
        number = int(self.command("POST", f"/v1/bills/{tenant}/{period}/cut")["number"])
        biller = self.biller()
        self.fold_until(lambda: (tenant, number) in cuts_without_bill(self.clickhouse), "the cut is in the history")

        def issued() -> bool:
            biller.issue()
            return self._issued(tenant, number) is not None

        self.fold_until(issued, lambda: f"bill {number} of {tenant}: {biller.waiting}")
        self.fold("bills")
        bill = self._issued(tenant, number)
        assert bill is not None
        return bill

    def recompute_as_a_stranger(self, tenant: str, number: int) -> None:
        """The program beside `docs/billing.md`, which imports nothing of ours, must come to the digest of an issued bill."""
        keys = [(self.settings.folder / "keys" / f"{signer}.pub").read_text().strip() for signer in ("setup", "relay", "market")]
        program = [sys.executable, "-m", "examples.recompute_bill", self.settings.kafka, tenant, str(number), *keys]
        program += [OPERATOR, str(kafka_password_file(self.settings.folder, OPERATOR))]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _issued(self, tenant: str, number: int) -> dict[str, Any] | None:
        for record in self.reader.read("bills"):
            name, body = self.codec.decode(record.value)  # the oracle reads Kafka, and uses no fold of ours
            if name == "BillIssued" and (body["tenant"], body["number"]) == (tenant, number):
                return body
        return None


def key_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@contextmanager
def running_market(folder: Path) -> Generator[Market]:
    """Everything that bills need, on a stack of its own."""
    with running_stack(folder, {"kafka", "registry", "clickhouse", "prepare", "commands", "relay", "queries"}) as stack:
        market = Market(stack.settings)
        yield market
        market.close()
