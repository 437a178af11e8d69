"""After malformed records on any topic every process starts again, keys work, and bills are issued and verified (K26)."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from cli.prepare import prepare
from commands.store.event_store import open_store
from commands.store.rebuild import rebuild_store
from events.facts.topics import FACTS, TOPICS
from events.log.chain import POSITION, PREVIOUS_SHA256, STORE, ChainPosition, claim_of
from events.log.fold_runner import FoldRunner
from events.log.partitioner import partition_of
from events.log.record import Record
from events.log.schemas import open_codec
from events.schema.codec import Undecodable
from infra.launcher import Stack
from projections.bills.verify import verify
from serving.gateway.routes import Routes
from tests.support.market import MODEL, Market
from tests.support.polling import WITHIN_S, eventually
from tests.support.stacks import running_stack

PROCESSES = ("signer", "commands", "relay", "queries", "worker-0", "biller")
ALL_PROCESSES = (*PROCESSES, "controller", "gateway")
BELOW = {"kafka", "registry", "clickhouse", "prepare"}


@pytest.fixture
def stack(tmp_path: Path, processes: tuple[str, ...]) -> Iterator[Stack]:
    with running_stack(tmp_path, {*BELOW, *processes} | ({"ray"} if "gateway" in processes else set())) as stack:
        yield stack


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("mutants", "processes"), [(300, PROCESSES), pytest.param(110_000, ALL_PROCESSES, marks=pytest.mark.soak)])
def test_after_mutants_on_every_topic_everything_starts_keys_work_and_bills_verify(
    stack: Stack, mutants: int, processes: tuple[str, ...], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    market, chance = Market(stack.settings), random.Random(mutants)
    book = market.prices({(MODEL, "calls"): (1_000, 1)})
    scopes = ("read", "invoke")
    tenant, old = market.tenant(book, scopes)
    market.append(tenant, [market.settled(tenant) for _ in range(20)])
    _issue(market, tenant, 1)

    counts = _write_mutants(market, chance, mutants, tenant)
    assert set(counts) == set(TOPICS)
    for part in processes:
        stack.restart(part)
    prepare(stack.settings)

    late, key = market.tenant(book, scopes)
    for one, whose in ((old, tenant), (key, late)):
        eventually(lambda one=one, whose=whose: _works(market, one, whose), "keys from before and after work at both APIs")
        if "gateway" in processes:
            eventually(lambda one=one: _asked(market.settings.gateway, "/v1/models", one).is_success, "and at the gateway")
    market.append(tenant, [market.settled(tenant) for _ in range(5)])
    _issue(market, tenant, 2)
    market.codec, log_id = open_codec(stack.settings, market.reader)
    assert log_id == market.log_id
    compared = verify(market.reader, market.codec, None, tenant, _month())
    assert [(c.number, c.agrees, c.difference_micros) for c in compared] == [(1, True, 0), (2, True, 0)]
    assert [sum(line.recomputed[0] for line in c.lines if line.key.meter == "calls") for c in compared] == [20, 5]

    routes = FoldRunner(stack.settings, market.codec, log_id, ("models", "deployments", "accounts", "prices"), Routes(), name="mutants")
    routes.start()
    try:
        assert routes.wait_caught_up(WITHIN_S)
        # A record with a false chain position is set aside some seconds after it arrived: two heartbeats, and the skew of brokers' clocks.
        eventually(lambda: routes.lag == 0 and routes.ready, "what no relay sent is set aside, and the fold is fresh")
    finally:
        routes.stop()
    eventually(
        lambda: not [s.name for s in stack.status().parts if s.name in {*BELOW, *processes} and not s.healthy], "every part is healthy"
    )
    codes = "SELECT code, count() AS n FROM dead_letters GROUP BY code ORDER BY code"
    wanted = {"not_sent", "not_signed", "not_framed", "no_value"}
    eventually(lambda: wanted <= {r["code"] for r in market.clickhouse.rows(codes)}, "mutants are named")
    alerts = "SELECT count() AS n FROM alerts WHERE rule = 'forged_record'"
    eventually(lambda: int(market.clickhouse.value(alerts)), "an alert names them")
    again = stack.settings.model_copy(update={"store_url": f"sqlite:///{tmp_path / 'again.sqlite'}"})
    rebuild_store(again)
    store = open_store(again)
    assert store.events(f"tenant/{late}"), "the store that is made again from the log has what was decided last"
    store.close()
    record_property("mutants written, and dead letters by code, per topic", _table(market, counts))
    market.close()


def _table(market: Market, counts: Counter[str]) -> list[str]:
    """Usage that can be read is held, if it is not signed: no dead letter."""
    by_code = "SELECT topic, code, count() AS n FROM dead_letters GROUP BY topic, code ORDER BY topic, n DESC, code"
    rows = market.clickhouse.rows(by_code)
    held = int(market.clickhouse.value("SELECT count() AS n FROM usage_held"))
    lines = {t: [f"{n} {c}" for topic, c, n in ((r["topic"], r["code"], r["n"]) for r in rows) if topic == t] for t in TOPICS}
    lines["usage"].append(f"{held} held")
    return [f"{topic:14}{counts[topic]:7}  {', '.join(named) or 'passed over'}" for topic, named in lines.items()]


def _month() -> str:
    return datetime.now(UTC).astimezone(ZoneInfo("Asia/Shanghai")).strftime("%Y-%m")


def _asked(url: str, path: str, key: str) -> httpx.Response:
    return httpx.get(f"{url}{path}", headers={"Authorization": f"Bearer {key}"}, timeout=30)


def _works(market: Market, key: str, tenant: str) -> bool:
    """Each API knows the key and whose it is: the command API answers 404 `no_bill` where there is none yet, and 401 to no key."""
    decided = _asked(market.settings.commands, f"/v1/bills/{tenant}", key)
    known = decided.is_success or decided.json()["code"] == "no_bill"
    return known and _asked(market.settings.queries, "/v1/bills", key).is_success


def _issue(market: Market, tenant: str, number: int) -> None:
    market.command("POST", f"/v1/bills/{tenant}/{_month()}/cut")
    issued = "SELECT JSONExtractInt(head, 'issued', 'number') AS number FROM documents WHERE topic = 'bills' AND key = {tenant:String}"
    eventually(lambda: {"number": number} in market.clickhouse.rows(issued, {"tenant": tenant}), f"bill {number} is issued")


def _write_mutants(market: Market, chance: random.Random, mutants: int, tenant: str) -> Counter[str]:
    """To every partition. Usage of this tenant's key is the only exception: what nobody can read there holds its bills, which is right (K9)."""
    bases = {topic: list(market.reader.read(topic)) for topic in TOPICS}
    every = [record for records in bases.values() for record in records]
    topics, counts, futures = list(TOPICS), Counter[str](), []
    for n in range(mutants):
        topic = topics[n % len(topics)]
        base = chance.choice(bases[topic] or every) if chance.random() < 0.8 else chance.choice(every)
        key, value, headers = _mutant(market, chance, base)
        partition = base.partition if base.topic == topic else chance.randrange(TOPICS[topic].partitions)
        if topic == "usage" and key == tenant.encode():
            key = chance.choice([None, b"another", str(uuid.uuid4()).encode()])
        futures.append(market.writer.append(topic, key, value, headers, partition))
        counts[topic] += 1
    for another in (None, b"another"):  # where the tenant's own usage is, whatever chance did
        futures.append(market.writer.append("usage", another, b"unreadable", {}, partition_of(tenant.encode(), TOPICS["usage"].partitions)))
        counts["usage"] += 1
    for claim in [
        c for r in every if (c := claim_of(r, r.headers)) is not None
    ]:  # the next position behind every decision, and so the next one
        tp = claim.record.topic, claim.record.partition
        successor = ChainPosition(claim.at.store, claim.at.position + 1, claim.sha256)
        value = _one_field_changed(market, chance, claim.record.value or b"")
        futures.append(market.writer.append(tp[0], claim.record.key, value, {**claim.record.headers, **successor.headers}, tp[1]))
        counts[tp[0]] += 1
    for future in futures:
        future.result(30)
    return counts


def _mutant(market: Market, chance: random.Random, base: Record) -> tuple[bytes | None, bytes | None, dict[str, bytes]]:
    key, value, headers = base.key, base.value or b"", dict(base.headers)
    match chance.randrange(8):
        case 0:
            flipped = bytearray(value or b"\0")
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            return key, bytes(flipped), headers
        case 1:
            return key, value[: chance.randrange(len(value) + 1)], headers
        case 2:
            return key, _one_field_changed(market, chance, value), headers
        case 3:
            return key, _one_field_changed(market, chance, value), {}
        case 4:
            return chance.choice([None, b"", b"another", str(uuid.uuid4()).encode()]), value, headers
        case 5:
            return key, None, headers
        case 6:
            name = chance.choice(sorted({*headers, STORE, POSITION, PREVIOUS_SHA256}))
            return key, value, {**headers, name: chance.choice([b"", b"0", b"7", b"%d" % chance.randrange(1 << 40), b"\xff", b"nobody"])}
        case _:
            return key, value, chance.choice([headers, {}])


def _one_field_changed(market: Market, chance: random.Random, value: bytes) -> bytes:
    try:
        name, body = market.codec.decode(value)
    except Undecodable:
        return value[::-1]
    field = chance.choice(sorted(body))
    changed: dict[type, list[Any]] = {
        int: [0, -1, 1 << 62, int(time.time())],
        str: ["", "x" * 2000, str(uuid.uuid4())],
        bytes: [b"", bytes(32)],
    }
    body[field] = chance.choice(changed.get(type(body[field]), [body[field]]))
    try:
        return market.codec.encode_dict(name, body, None if name in FACTS else "models")
    except Exception:  # a value that its field cannot hold
        return value
