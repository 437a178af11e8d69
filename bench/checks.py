"""What each check costs by itself: the same work with it and without it, in turns, in processor time.

Beside them belong the figures of `invoke`, `commands` and `log_to_table` of the same day: a share of a call is that of its processor time there.
"""

from __future__ import annotations

import asyncio
import http.client
import statistics
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bench.baselines.bare_broker import HOST, broker_without_security
from bench.invoke import used
from events.log.chain import FIRST, ChainPosition
from events.log.client import Reader, Writer
from events.log.record import Coordinate
from events.process.http_admission import Admission
from events.process.http_server import make_server
from events.process.settings import Settings
from events.process.signing_keys import SigningKey
from infra.clickhouse_local.engine import ChdbEngine
from infra.clickhouse_local.http_protocol import Job
from infra.clickhouse_local.requests import read_request
from infra.clickhouse_local.sign_in import Caller, SignIn
from infra.launcher import Stack
from infra.launcher.ports import free_block
from serving.metering.meter import SignedBatches

NAME = "checks"
PAIRS = 9
Row = dict[str, Any]
Work = Callable[[int], float]
"""Does it so many times, and returns the seconds of processor time that it took."""


def run(stack: Stack, quick: bool) -> list[Row]:
    size = 10 if quick else 1
    stack.up({"kafka", "registry", "clickhouse", "prepare"})
    rows = [row for batch in (1, 4, 16, 64) for row in [_signed_usage(stack.settings, batch, 20_000 // size)]]
    rows += _signed_decisions(20_000 // size)
    rows += _bounded_connections(10_000 // size)
    rows.append(_admission(50_000 // size))
    rows += _statements(stack.settings.folder / "checks", size)
    with broker_without_security(stack) as (bare, bare_broker):
        broker = _java_of(stack)
        rows.append(_batches_at_kafka((stack.settings, broker), (bare, bare_broker), 300_000 // size))
        rows.append(_single_records_at_kafka((stack.settings, broker), (bare, bare_broker), 4_000 // size))
    return rows


def _pairs(metric: str, times: int, bare: Work, checked: Work, unit: str = "µs") -> Row:
    """The median of the pairs' own differences and ratios; each pair in the other order than the one before."""
    bare(max(1, times // 4))
    checked(max(1, times // 4))
    found: list[tuple[float, float]] = []
    for turn in range(PAIRS):
        order = (bare, checked) if turn % 2 else (checked, bare)
        took = {work: work(times) / times * 1e6 for work in order}
        found.append((took[bare], took[checked]))
    without, ratios = statistics.median(pair[0] for pair in found), sorted(after / before for before, after in found)
    cost = statistics.median(after - before for before, after in found)
    return {
        "metric": metric,
        "value": round(cost, 2),
        "unit": unit,
        "baseline": f"{without:,.1f} µs without; pairs {ratios[0]:.2f} … {ratios[-1]:.2f}",
        "ratio": statistics.median(ratios),
    }


def _alone(metric: str, times: int, work: Work, baseline: str = "nothing") -> Row:
    """What is only there with the check."""
    work(max(1, times // 4))
    took = statistics.median(work(times) / times * 1e6 for _ in range(PAIRS))
    return {"metric": metric, "value": round(took, 2), "unit": "µs", "baseline": baseline}


def _repeated(once: Callable[[], object]) -> Work:
    def work(times: int) -> float:
        began = time.process_time()
        for _ in range(times):
            once()
        return time.process_time() - began

    return work


# --- invoke: the signature of usage (K13)


def _signed_usage(settings: Settings, batch: int, records: int) -> Row:
    value, headers = bytes(350), {"ce_id": b"0" * 36}
    digest = sha256(value).digest()

    async def sent(count: int, signed: bool) -> float:
        writer = Writer(settings, "bench-checks")
        batches = SignedBatches(writer, SigningKey.new(), "log", "epoch", lambda: None)
        writer.append("usage", b"acme", value).result(30)  # a new producer asks for its id first
        began = time.process_time()
        for number in range(count):
            if signed:
                batches.append(_delivered, b"acme", value, digest, headers)
            else:
                writer.append_then(_delivered, "usage", b"acme", value, headers)
            if number % batch == batch - 1:
                await asyncio.sleep(0)
        while batches.waiting or writer.waiting:
            await asyncio.sleep(0.005)
        took = time.process_time() - began
        writer.close(10)
        return took

    def bare(count: int) -> float:
        return asyncio.run(sent(count, signed=False))

    def checked(count: int) -> float:
        return asyncio.run(sent(count, signed=True))

    return _pairs(f"invoke: a usage fact is signed, {batch} in a batch", records, bare, checked)


def _delivered(_at: Coordinate | None, error: Exception | None) -> None:
    assert error is None, error


# --- commands: what the relay signs (K4), and what a request meets before its body is read


def _signed_decisions(records: int) -> list[Row]:
    key, value = SigningKey.new(), bytes(500)

    def chained(signed_each: int) -> Work:
        def work(times: int) -> float:
            digest, began = FIRST, time.process_time()
            for position in range(1, times + 1):
                at = ChainPosition("store", position, digest)
                digest = at.sha256(b"k", value)
                if signed_each and position % signed_each == 0:
                    at.signed_headers(key, "models", 0, digest)
                else:
                    _ = at.headers
            return time.process_time() - began

        return work

    return [_pairs(f"commands: the relay signs each {n}. decision", records, chained(0), chained(n)) for n in (1, 16)]


def _admission(requests: int) -> Row:
    caller = Caller("operator", "acme")
    scope = {"type": "http", "path": "/v1/models", "headers": [(b"authorization", b"Bearer mm_0123456789")]}
    body = {"type": "http.request", "body": b"{}", "more_body": False}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def identify(_authorization: bytes) -> Caller:
        return caller

    async def receive() -> Any:
        return body

    async def send(_message: Any) -> None:
        return None

    def asked(of: Any) -> Work:
        async def ask(times: int) -> float:
            began = time.process_time()
            for _ in range(times):
                await of(dict(scope), receive, send)
            return time.process_time() - began

        return lambda times: asyncio.run(ask(times))

    return _pairs(
        "commands: key first, a tenant's share, times of the body", requests, asked(app), asked(Admission(app, identify, 1 << 20))
    )


# --- every listener: bounds of a connection


def _bounded_connections(requests: int) -> list[Row]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    with free_block() as port, _serving(make_server(app, HOST, port, lifespan="off")):
        plain = uvicorn.Config(app, HOST, port + 1, http=HttpToolsProtocol, ws="none", lifespan="off", log_config=None, access_log=False)
        with _serving(uvicorn.Server(plain)):
            return [_pairs("every listener: times and shares of a connection, client included", requests, _calls(port + 1), _calls(port))]


@contextmanager
def _serving(server: uvicorn.Server) -> Generator[None]:
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    yield
    server.should_exit = True
    thread.join(20)


def _calls(port: int) -> Work:
    def work(times: int) -> float:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        began = time.process_time()
        for _ in range(times):
            connection.request("POST", "/", b"{}")
            connection.getresponse().read()
        took = time.process_time() - began
        connection.close()
        return took

    return work


# --- log_to_table: who asks ClickHouse, and what


class _Engine(ChdbEngine):
    """Does a job in this thread, or only what comes before it."""

    def do(self, job: Job) -> object:
        return self._run(job)

    def check(self, job: Job) -> None:
        statement, _, _ = read_request(self._parser, job.sql, [], "")  # remembered by its text
        self._check(job, statement)


def _statements(folder: Path, size: int) -> list[Row]:
    engine = _Engine(folder, "market")
    try:
        operator, ingest = Job(Caller("operator"), ""), Job(Caller("ingest"), "")
        made = "CREATE TABLE market.usage_rows (a Int64, b String) ENGINE = MergeTree ORDER BY a"
        engine.do(replace(operator, sql=made, database="market"))
        line = b'{"a":1,"b":"' + b"x" * 300 + b'"}\n'
        found: list[Row] = []
        job = replace(ingest, sql="INSERT INTO market.usage_rows FORMAT JSONEachRow", database="market")
        for rows, times in ((1, 400), (20_000, 40)):
            filled, each = replace(job, body=[line * rows]), max(1, times // size // PAIRS)
            insert = _repeated(lambda filled=filled: engine.do(filled))
            whole = statistics.median(insert(each) for _ in range(PAIRS)) / each * 1e6
            name = f"log_to_table: the statement of an insert of {rows:,} row{'s' if rows > 1 else ''} is checked"
            row = _alone(name, 4_000 // size, _repeated(lambda: engine.check(job)), f"{whole:,.0f} µs, the insert as a whole")
            found.append({**row, "ratio": whole / (whole - row["value"])})
        numbers = iter(range(1 << 30))
        new = _repeated(lambda: engine.do(replace(operator, sql=f"SELECT {next(numbers)}", database="market")))
        same = _repeated(lambda: engine.do(replace(operator, sql="SELECT 1", database="market")))
        found.append(_pairs("every question: its text is new, so it is parsed first", 400 // size, same, new))
    finally:
        engine.close()

    async def unasked(_key: str) -> str | None:
        raise AssertionError("our own roles have passwords")

    sign_in = SignIn({"ingest": "p" * 64}, unasked)

    def signing_in(times: int) -> float:
        async def work() -> float:
            began = time.process_time()
            for _ in range(times):
                assert await sign_in.caller("ingest", "p" * 64)
            return time.process_time() - began

        return asyncio.run(work())

    return [*found, _alone("log_to_table: ingest's password is compared, once an insert", 20_000 // size, signing_in)]


# --- all three: sign-in and access lists at Kafka

Broker = tuple[Settings, list[psutil.Process]]


def _java_of(stack: Stack) -> list[psutil.Process]:
    pid = stack.pid("kafka")
    assert pid is not None
    return [psutil.Process(pid)]


def _batches_at_kafka(secured: Broker, bare: Broker, records: int) -> Row:
    """Written in batches and read again, as at full rate."""

    def moved(settings: Settings, broker: list[psutil.Process]) -> Work:
        def work(times: int) -> float:
            before = used(broker)
            writer = Writer(settings, "bench-checks", linger_ms=20, extra={"batch.size": 1 << 20})
            for number in range(times):
                while writer.waiting > 50_000:
                    time.sleep(0.001)
                writer.append_then(_delivered, "usage", b"%d" % (number % 500), bytes(350))
            assert writer.close(60)
            reader = Reader(settings, "bench-checks")
            ends = reader.end_offsets("usage")
            starts = {p: max(0, end - times // len(ends)) for (_, p), end in ends.items()}
            for _ in reader.read("usage", starts):
                pass
            reader.close()
            return used(broker) - before

        return work

    return _pairs("all: a record through Kafka in batches, broker's time, sign-in and access lists", records, moved(*bare), moved(*secured))


def _single_records_at_kafka(secured: Broker, bare: Broker, records: int) -> Row:
    """One after the other, each acknowledged: a request each, as of a lone caller."""

    def acknowledged(settings: Settings, broker: list[psutil.Process]) -> Work:
        def work(times: int) -> float:
            writer = Writer(settings, "bench-checks", linger_ms=0)
            writer.append("usage", b"acme", bytes(350)).result(60)
            before = used(broker)
            for _ in range(times):
                writer.append("usage", b"acme", bytes(350)).result(60)
            took = used(broker) - before
            writer.close(10)
            return took

        return work

    return _pairs(
        "all: a request with one record, broker's time, sign-in and access lists", records, acknowledged(*bare), acknowledged(*secured)
    )
