"""The story of two tenants: visionlab owns a classifier of digits, globex calls it, and both can check what it cost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.demo import digits
from examples.demo.caller import Answers, call_all
from examples.demo.chaos import Chaos
from examples.demo.digits import Trained
from examples.demo.market import DemoFailed, Market, until
from examples.demo.proof import LogObserver, analyst
from infra.launcher import Stack

OWNER, CALLER = "visionlab", "globex"
MODEL = "model-vision-lab-digits"
CANARY_CALLS = 500
AFTER_ROLLBACK_CALLS = 100
CANARY_PERCENT = 20
PRICES = [
    {"model": MODEL, "meter": "calls", "amount_micros": 2_000, "per_units": 1},
    {"model": "*", "meter": "bytes_in", "amount_micros": 100_000, "per_units": 100_000_000},
    # Without a price usage is held, never free: what costs nothing says so.
    {"model": "*", "meter": "bytes_out", "amount_micros": 0},
    {"model": "*", "meter": "cpu_us", "amount_micros": 0},
]


class Story:
    """Each chapter does one thing, checks that it is true, and prints which facts it wrote."""

    def __init__(self, stack: Stack, console: Console, *, chaos: bool) -> None:
        self.stack, self.settings, self.console, self.chaos = stack, stack.settings, console, chaos
        self.calls: Counter[str] = Counter()
        self.billed_micros: Counter[str] = Counter()
        """As the query API shows the issued bills."""
        self.difference = 0
        """Micro-units between what was billed and what the log gives, over all bills."""
        self.witness = LogObserver(self.settings)
        self.began = time.monotonic()

    def run(self) -> None:
        self.start()
        self.open_accounts()
        first, second = self.train()
        self.supply(first)
        self.deploy_first(first)
        self.call_everything()
        self.canary(first, second)
        self.roll_back(first, second)
        self.look_at_catalog()
        self.look_at_metering()
        self.bill()
        self.witness.new()

    def last_line(self) -> str:
        billed = f"{sum(self.billed_micros.values()) / 1_000_000:.6f}CNY"
        return f"demo ok: calls={sum(self.calls.values())} facts={self.witness.seen()} billed={billed} difference={self.difference}"

    # --- printing

    def chapter(self, title: str) -> None:
        self.console.rule(f"[bold]{title}[/]  [dim]{time.monotonic() - self.began:.0f} s[/]", align="left")

    def narrate(self, text: str) -> None:
        self.console.print(f"  {text}", soft_wrap=True)

    def written(self) -> None:
        """Which facts came onto the log in this chapter, by any process."""
        table = Table("topic", "facts written", box=None, padding=(0, 2, 0, 2), header_style="dim", style="dim")
        found, by_topic = self.witness.new(), dict[str, list[str]]()

        def published() -> bool:
            """What commands have answered with is stored; the relay writes it a moment later."""
            found.update(self.witness.new())
            there = Counter[str]()
            for (_, name), n in found.items():
                there[name] += n
            return there >= self.market.promised

        until("the facts of these commands on the log", published)
        self.market.promised.clear()
        for (topic, name), n in found.items():
            by_topic.setdefault(topic, []).append(f"{name} × {n:,}" if n > 1 else name)
        for topic, names in by_topic.items():
            table.add_row(topic, ", ".join(names))
        self.console.print(table)

    def must(self, condition: bool, what: str) -> None:
        if not condition:
            raise DemoFailed(what)

    # --- the chapters

    def start(self) -> None:
        self.chapter("Starting Kafka, registry, ClickHouse engine, Ray and our processes")
        began = time.monotonic()
        self.stack.up(progress=lambda part, what: self.narrate(f"[dim]{part}: {what}[/]") if what.startswith("healthy") else None)
        self.narrate(f"all healthy after {time.monotonic() - began:.1f} s")
        self.market = Market(self.settings, self.stack.paths.admin_key.read_text().strip())
        self.written()

    def open_accounts(self) -> None:
        self.chapter("Two tenants, their keys, and a price book")
        admin = self.market
        admin.command("POST", "/v1/price-books/standard/versions", {"prices": PRICES})
        for tenant, name in ((OWNER, "Vision Lab"), (CALLER, "Globex")):
            admin.command("POST", "/v1/tenants", {"tenant": tenant, "display_name": name})
        self.alice = self._key(OWNER, "alice", ["models", "deploy", "read", "invoke"], team="lab")
        self.bob = self._key(OWNER, "bob", ["review:business"])
        self.carol = self._key(OWNER, "carol", ["review:security"])
        self.globex = self._key(CALLER, "dave", ["invoke", "read"], department="claims", project="scan")
        self.narrate("alice owns models, bob and carol review them, dave at Globex calls them")
        self.narrate("CNY 0.002 per call, CNY 0.1 per 100 MB sent")
        self.written()

    def _key(self, tenant: str, user: str, scopes: list[str], **dimensions: str) -> Market:
        created_key = self.market.command("POST", f"/v1/tenants/{tenant}/keys", {"user": user, "scopes": scopes, **dimensions})
        return self.market.with_key(str(created_key["api_key"]))

    def train(self) -> tuple[Trained, Trained]:
        self.chapter("Training two classifiers of handwritten digits")
        first, second = digits.train()
        for m in (first, second):
            self.narrate(f"{m.version}: {m.notes}, accuracy {m.accuracy:.3f}, {len(m.onnx)} bytes of ONNX, {m.digest[:19]}…")
        self.images = digits.images()
        return first, second

    def supply(self, model: Trained) -> None:
        self.chapter("Register, upload, submit, and two people approve")
        self.alice.command(
            "POST",
            "/v1/models",
            {
                "domain": "vision",
                "team": "lab",
                "name": "digits",
                "scenario": "forms",
                "task": "image-classification",
                "description": "Handwritten digits, 8 × 8 grey pixels.",
                "tags": ["digits", "ocr"],
                "compliance": {"licence": "BSD-3-Clause", "data_sources": ["scikit-learn digits (UCI)"], "data_level": "public"},
            },
        )
        self.add_version(MODEL, model, [])
        path = f"/v1/models/{MODEL}/versions/{model.version}/reviews"
        refused = self.alice.command("POST", path, {"review": "business", "verdict": "approved"}, expect=403)
        self.narrate(f"alice may not approve her own model: [yellow]{refused['code']}[/], {refused['detail']}")
        self.approve(MODEL, model)
        self.written()

    def add_version(self, name: str, model: Trained, parents: list[str]) -> None:
        self.alice.command("PUT", f"/v1/artifacts/{model.digest}", model.onnx)
        self.alice.command(
            "POST",
            f"/v1/models/{name}/versions",
            {
                "version": model.version,
                "artifact": model.digest,
                "release_notes": model.notes,
                "technical": {
                    "format": "onnx",
                    "framework": model.framework,
                    "precision": "FP32",
                    "inputs": digits.INPUTS,
                    "outputs": digits.OUTPUTS,
                    "latency_target_us": 20_000,
                },
                "lineage": {"parents": parents, "data_sets": ["sklearn.datasets.load_digits"], "hyperparameters": model.hyperparameters},
            },
        )
        self.alice.command("POST", f"/v1/models/{name}/versions/{model.version}/submit")

    def approve(self, name: str, model: Trained) -> None:
        path = f"/v1/models/{name}/versions/{model.version}/reviews"
        self.bob.command("POST", path, {"review": "business", "verdict": "approved", "comment": "useful"})
        self.carol.command("POST", path, {"review": "security", "verdict": "approved", "comment": "no external data"})

    def deploy_first(self, model: Trained) -> None:
        self.chapter("Deploy: the controller reads it from Kafka and configures Ray Serve")
        self.alice.command("POST", f"/v1/models/{MODEL}/deployments", {"version": model.version})
        seconds = until(f"{MODEL} {model.version} ready", lambda: self.globex.ready(MODEL, model.version))
        self.narrate(f"ready at the gateway after {seconds:.1f} s")
        until("the price at the gateway", lambda: bool(self.globex.price(MODEL)))
        price = self.globex.price(MODEL)["calls"]
        self.narrate(
            f"Globex sees in GET /v1/models what a call costs: CNY {price['amount_micros'] / 1_000_000:g} per {price['per_units']}"
        )
        self.written()

    def call_everything(self) -> None:
        self.chapter("Globex and Vision Lab send all 1 797 images through the gateway")
        half = len(self.images.labels) // 2
        chaos = Chaos(self.stack, len(self.images.labels), self.narrate) if self.chaos else None
        total = Answers()
        for tenant, who, span in ((CALLER, self.globex, range(half)), (OWNER, self.alice, range(half, len(self.images.labels)))):
            answers = self._call(tenant, who, [int(i) for i in span], "first", chaos)
            total.labels += answers.labels
            total.retries += answers.retries
            total.seconds += answers.seconds
            total.latencies_ms += answers.latencies_ms
            total.receipts += answers.receipts
        right = sum(int(a == b) for a, b in zip(total.labels, self.images.labels, strict=True))
        self.must(len(total.receipts) == len(total.labels), "an answer came without a receipt")
        latencies = sorted(total.latencies_ms)
        self.narrate(
            f"{right} of {len(total.labels)} right ({right / len(total.labels):.3f}); {len(total.labels) / total.seconds:.0f} calls/s, "
            f"p50 {latencies[len(latencies) // 2]:.0f} ms; retried: {total.retries}"
        )
        self.narrate(f"each answer names its usage fact, for example {total.receipts[0]}")
        self.written()
        if chaos is not None:
            self.must(len(chaos.killed) == 4, f"only {chaos.killed} were killed")

    def _call(self, tenant: str, who: Market, indices: list[int], name: str, chaos: Chaos | None = None) -> Answers:
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(tenant, total=len(indices))

            def answered() -> None:
                bar.advance(task)
                if chaos is not None:
                    chaos.on_answer()

            keys = [f"{name}-{tenant}-{i}-{n}" for n, i in enumerate(indices)]
            answers = call_all(self.settings.gateway, who.key, MODEL, self.images.pixels[indices], keys, answered)
        self.calls[tenant] += len(indices)
        return answers

    def canary(self, first: Trained, second: Trained) -> None:
        self.chapter(f"Version {second.version} takes {CANARY_PERCENT} % of the calls")
        self.add_version(MODEL, second, [first.version])
        self.approve(MODEL, second)
        self.alice.command("POST", f"/v1/models/{MODEL}/rollouts", {"version": second.version, "weight_percent": CANARY_PERCENT})
        until(f"{second.version} ready", lambda: self.globex.ready(MODEL, second.version))
        answers = self._call(CALLER, self.globex, [i % 1797 for i in range(CANARY_CALLS)], "canary")
        share = answers.versions[second.version] / CANARY_CALLS
        self._split(answers)
        self.must(0.15 <= share <= 0.25, f"{second.version} took {share:.0%} of the calls, not {CANARY_PERCENT} %")
        self.during_canary = datetime.now(UTC)
        self.written()

    def _split(self, answers: Answers) -> None:
        for version, n in sorted(answers.versions.items()):
            self.narrate(f"{version} answered {n} of {sum(answers.versions.values())}")

    def roll_back(self, first: Trained, second: Trained) -> None:
        self.chapter("Roll back: one command, no failed call")
        self.alice.command("POST", f"/v1/models/{MODEL}/rollback", {"reason": "the demo shows a rollback"})

        def back() -> bool:
            seen = self._call(CALLER, self.globex, [0] * 10, f"probe-{time.monotonic_ns()}")
            return seen.versions[first.version] == 10

        seconds = until("the rollback at the gateway", back)
        answers = self._call(CALLER, self.globex, [i % 1797 for i in range(AFTER_ROLLBACK_CALLS)], "after")
        self._split(answers)
        self.must(answers.versions[second.version] == 0, f"{second.version} still answers after the rollback")
        self.narrate(f"seen at the gateway within {seconds:.1f} s; retried: {answers.retries}")
        self.written()

    def look_at_catalog(self) -> None:
        self.chapter("The catalog, now and as of the canary: the past is a filter")
        table = Table("as of", "version", "review", "share of calls")
        for when, at in (("during the canary", self.during_canary.isoformat()), ("now", "")):
            found = self.globex.query(f"/v1/catalog/{MODEL}", **({"as_of": at} if at else {}))
            for version, state in found["versions"].items():
                table.add_row(when, version, state["status"], f"{found['weights'].get(version, 0)} %")
        self.console.print(table)

    def look_at_metering(self) -> None:
        self.chapter("Metering in ClickHouse, queried with its official client")
        client = analyst(self.settings)
        query = "SELECT tenant, model_version, sum(calls) AS calls, sum(bytes_in) AS bytes_in FROM metering_daily AS m WHERE m.calls > 0 GROUP BY ALL ORDER BY ALL"

        def rows() -> list[Any]:
            return list(client.query(query).result_rows)

        until("all answered calls are counted", lambda: sum(r[2] for r in rows()) >= sum(self.calls.values()))
        table = Table("tenant", "version", "calls", "bytes in")
        for row in rows():
            table.add_row(*(str(v) for v in row))
        self.console.print(table)

    def bill(self) -> None:
        self.chapter("Bills: issued, and recomputed from Kafka alone")
        period = datetime.now(ZoneInfo("Asia/Shanghai")).strftime("%Y-%m")  # the tenants' zone
        for tenant in (CALLER, OWNER):
            self.market.command("POST", f"/v1/bills/{tenant}/{period}/cut")
        table = Table("tenant", "version", "meter", "CNY per units")
        for column in ("quantity", "CNY"):
            table.add_column(column, justify="right")
        for tenant in (CALLER, OWNER):
            bill = self._issued(tenant, period)
            for line in bill["lines"]:
                if line["amount_per_micros"]:  # what is free is on the bill, but not in this table
                    price = f"{line['amount_per_micros'] / 1_000_000:g} / {line['per_units']:,}"
                    amount = f"{line['amount_micros'] / 1_000_000:.6f}"
                    table.add_row(tenant, line["model_version"], line["meter"], price, f"{line['quantity']:,}", amount)
            self.billed_micros[tenant] += int(bill["total_micros"])
            calls = sum(line["quantity"] for line in bill["lines"] if line["meter"] == "calls")
            self.must(calls == self.calls[tenant], f"{tenant} was billed {calls} calls, but {self.calls[tenant]} were answered")
        self.console.print(table)
        self.written()

        for tenant in (CALLER, OWNER):
            self._verify(tenant, period)
        self.must(self.difference == 0, f"bills and log differ by {self.difference} micro-units")

    def _issued(self, tenant: str, period: str) -> dict[str, Any]:
        """The issued bill, once the biller has computed it from the table and from the log and found both equal."""
        found: list[dict[str, Any]] = []

        def issued() -> bool:
            bills = self.market.query(f"/v1/bills/{period}", tenant=tenant)["bills"]
            found[:] = [b for b in bills if b["status"] == "issued"]
            return bool(found)

        seconds = until(f"the bill of {tenant}", issued)
        counted = ", ".join(f"{name} {n}" for name, n in found[0]["facts"].items() if n)
        self.narrate(f"{tenant}: bill {found[0]['number']} issued after {seconds:.1f} s; facts: {counted}")
        return found[0]

    def _verify(self, tenant: str, period: str) -> None:
        """`modelmarket bill … --verify`, as an auditor would run it: what was billed against what the log gives."""
        command = [sys.executable, "-m", "cli.app", "bill", tenant, period, "--verify", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        self.narrate(f"$ modelmarket bill {tenant} {period} --verify")
        self.must(done.returncode == 0, f"the bill of {tenant} does not verify:\n{done.stdout}\n{done.stderr}")
        compared = json.loads(done.stdout)
        difference = sum(abs(line["billed"][1] - line["recomputed"][1]) for one in compared for line in one["lines"])
        issued = sum(one["recomputed_micros"] for one in compared if one["status"] == "issued")
        difference += abs(self.billed_micros[tenant] - issued)
        lines = sum(len(one["lines"]) for one in compared)
        what = f"{lines} lines of {len(compared)} bills (issued, and running since) recomputed from the log"
        self.narrate(f"  {what}: {issued / 1_000_000:.6f} CNY, difference {difference}")
        self.difference += difference
