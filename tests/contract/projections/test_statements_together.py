"""Statements of many tenants from one set of questions are those of each tenant alone, and those of the pure rules over the same records (K20)."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from events.facts.meters import METERS
from events.log.partitioner import partition_of
from projections.bills.from_tables import bill_from_tables, statements_from_table
from projections.bills.from_tables.bill_from_tables import facts_of, groups_of
from projections.bills.from_tables.decided_in_tables import unreadable_below, unreadable_of
from projections.bills.from_tables.statements_from_table import Asked, TooManyRows, statements_of
from projections.bills.from_tables.together import together
from projections.catalog.tables import STATEMENTS
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable
from projections.usage import held
from projections.usage.views import usage_statements
from rating.book import BookVersion, Price, PriceBook
from rating.rules import DAY_US, SETTLED, VOIDED, UsageRecord
from rating.statement import Cutoff, Place, Statement, StatementBuilder
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess

pytestmark = pytest.mark.engine

PARTITION = 2
TENANTS = [name for name in (f"tenant-{n}" for n in range(40)) if partition_of(name.encode(), 4) == PARTITION][:6]
FIRST_US = 1_700_000_000_000_000
RECORDS = 240


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    engine = ClickHouseProcess(tmp_path_factory.mktemp("together"))
    engine.start()
    client = ClickHouse(engine.settings)
    for statement in (*STATEMENTS, *held.STATEMENTS, *usage_statements("usage")):
        client.command(statement)
    yield client
    engine.stop()


@pytest.fixture(autouse=True)
def nothing_there(clickhouse: ClickHouse) -> None:
    for table in ("usage", "usage_held_rows", "usage_decided_rows", "history_rows"):
        clickhouse.command(f"TRUNCATE TABLE {table}")


# --- records and the pure rules over them


@dataclass
class Written:
    """What one partition has: each tenant's records, what is held of them, and what people decided about it."""

    records: list[tuple[str, UsageRecord]] = field(default_factory=list[tuple[str, UsageRecord]])
    freed_at: dict[int, int] = field(default_factory=dict[int, int])
    counted: dict[int, int] = field(default_factory=dict[int, int])

    def place(self, offset: int, cutoff: Cutoff) -> Place:
        if offset not in self.freed_at:
            return "whole"
        freed = self.freed_at[offset]
        if freed >= 0 and cutoff.knows(PARTITION, freed):
            return "whole"
        return "decided" if self.counted.get(offset, 1 << 60) <= cutoff.decided_position else "held"

    def statement(self, asked: Asked) -> Statement:
        """By the pure rules alone."""
        cutoff = asked.cutoff
        known = [r for tenant, r in self.records if tenant == asked.tenant and cutoff.knows(PARTITION, r.offset)]
        voided = frozenset(r.voided for r in known if r.fact == VOIDED and self.place(r.offset, cutoff) != "held")
        builder = StatementBuilder(cutoff, asked.book, voided)
        for record in known:
            builder.add(record, self.place(record.offset, cutoff))
        return builder.statement()


def written(chance: random.Random) -> Written:
    """Every class of record in any order: plain, failed, shadow, copies, conflicts, voids, repeated keys, late clocks, held and freed."""
    found = Written()
    for offset in range(RECORDS):
        tenant = chance.choice(TENANTS)
        mine = [r for t, r in found.records if t == tenant]
        append = FIRST_US + offset * DAY_US // 12 // 1000 * 1000
        kind = chance.choice(["plain"] * 6 + ["failed", "shadow", "copy", "conflict", "void", "key", "key", "key"])
        occurred = append - chance.choice([0, 1000, DAY_US, 8 * DAY_US, -DAY_US])
        settled = UsageRecord(
            partition=PARTITION,
            offset=offset,
            append_us=append,
            sha256=digest(offset),
            fact=SETTLED,
            event_id=str(uuid.UUID(int=chance.getrandbits(128))),
            occurred_at=occurred,
            epoch=chance.choice(["e1", "e2", "e3"]),
            sequence=chance.randrange(1, 60),
            outcome="failed" if kind == "failed" else "succeeded",
            shadow=kind == "shadow",
            invocation_key=chance.choice([b"one", b"two"]) if kind == "key" else b"",
            provider=chance.choice(["acme", "globex"]),
            model=chance.choice(["a", "b"]),
            model_version="1",
            quantities=tuple(chance.choice([0, 0, 1, 7, 1 << 40]) for _ in METERS),
        )
        if kind in ("copy", "conflict") and mine:
            first = chance.choice(mine)
            bytes_of = first if kind == "copy" else settled
            settled = replace(bytes_of, offset=offset, append_us=append, event_id=first.event_id)
        elif kind == "void" and mine:
            named = chance.choice(found.records)[1] if chance.random() < 0.2 else chance.choice(mine)
            settled = UsageRecord(
                PARTITION, offset, append, digest(offset), VOIDED, settled.event_id, occurred, "e1", settled.sequence, voided=named.event_id,
                quantities=(0,) * len(METERS),
            )  # fmt: skip
        found.records.append((tenant, settled))
        if chance.random() < 0.15:
            found.freed_at[offset] = chance.choice([-1, -1, chance.randrange(RECORDS)])
            if chance.random() < 0.5:
                found.counted[offset] = chance.randrange(20)
    return found


def digest(n: int) -> bytes:
    return hashlib.md5(b"%d" % n).hexdigest().encode()


def fill(clickhouse: ClickHouse, of: Written, chance: random.Random) -> None:
    """In some inserts, with rows that a paused worker wrote twice, and tombstones whose records were read later."""
    rows = [row(tenant, record) for tenant, record in of.records]
    size = chance.choice([40, 90, RECORDS])
    for start in range(0, len(rows), size):
        insert(clickhouse, "usage", rows[start : start + size])
    insert(clickhouse, "usage", chance.sample(rows, 15))
    dead = [
        {"kafka_partition": PARTITION, "kafka_offset": at, "readable": 0, "fact": "Unreadable"} for at in chance.sample(range(RECORDS), 5)
    ]
    insert(clickhouse, "usage", dead)
    held_rows = [{"kafka_partition": PARTITION, "kafka_offset": at, "freed_at": freed} for at, freed in of.freed_at.items()]
    insert(clickhouse, "usage_held_rows", [{**r, "freed_at": -1} for r in held_rows])
    insert(clickhouse, "usage_held_rows", [r for r in held_rows if r["freed_at"] >= 0])
    decided = [
        {"kafka_partition": PARTITION, "kafka_offset": at, "decision": decision, "position": position + later}
        for at, position in of.counted.items()
        for decision, later in (("count", 0), ("count", 5), ("dismiss", -3))
    ]
    insert(clickhouse, "usage_decided_rows", decided)


def insert(clickhouse: ClickHouse, table: str, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        clickhouse.insert_rows(table, rows, token=str(uuid.uuid4()))


def row(tenant: str, r: UsageRecord) -> dict[str, Any]:
    return {
        "kafka_partition": r.partition,
        "kafka_offset": r.offset,
        "readable": 1,
        "kafka_time_us": r.append_us,
        "sha256": r.sha256.decode(),
        "fact": r.fact,
        "tenant": tenant,
        "event_id": r.event_id,
        "occurred_at": r.occurred_at,
        "epoch": r.epoch,
        "sequence": r.sequence,
        "outcome": r.outcome,
        "shadow": r.shadow,
        "invocation_key": r.invocation_key.decode(),
        "provider": r.provider,
        "model": r.model,
        "model_version": r.model_version,
        **({"voided": r.voided} if r.voided else {}),
        **dict(zip(METERS, r.quantities, strict=True)),
    }


def asked_in(chance: random.Random, of: Written) -> list[Asked]:
    """Of each tenant one statement or two, at any cuts, under any of some books, without some offsets; and of one who has no usage."""
    price = {("a", "calls"): Price(7, 3), ("*", "calls"): Price(5, 1)}
    bounds = sorted(chance.sample(range(FIRST_US, FIRST_US + 20 * DAY_US), 4))
    books = [PriceBook(), PriceBook([BookVersion(n, at, price) for n, at in enumerate(bounds)]), PriceBook([BookVersion(1, 0, price)])]
    asked: list[Asked] = []
    for tenant in (*TENANTS, "nobody-has-heard-of-it"):
        for _ in range(chance.choice([1, 2])):
            excluded = frozenset(chance.sample([*range(RECORDS), *of.freed_at.values()], chance.choice([0, 0, 3, 20])))
            cut, until = chance.choice([0, 50, 200, RECORDS, 1 << 40]), FIRST_US + chance.randrange(30) * DAY_US
            asked.append(Asked(tenant, Cutoff({PARTITION: cut}, until, 1, excluded, chance.randrange(25)), chance.choice(books)))
    asked += [Asked(tenant, Cutoff({PARTITION: RECORDS}, FIRST_US + 15 * DAY_US), books[1]) for tenant in TENANTS]
    chance.shuffle(asked)
    return asked


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(n, marks=pytest.mark.soak) for n in range(8, 200))])
def test_statements_asked_together_are_those_of_each_alone_and_of_the_pure_rules(
    clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    of = written(chance)
    fill(clickhouse, of, chance)
    asked = asked_in(chance, of)
    monkeypatch.setattr(statements_from_table, "EXCEPTIONS_MAX", chance.choice([0, 3, 2000]))
    monkeypatch.setattr(statements_from_table, "SHARED_KEYS_PAGE", chance.choice([20, 50_000]))
    right = [of.statement(one) for one in asked]
    found = statements_of(clickhouse, PARTITION, asked)
    for one, mine, expected in zip(asked, found, right, strict=True):
        assert mine == expected, one
    for one, expected in list(zip(asked, right, strict=True))[:3]:
        assert statements_of(clickhouse, PARTITION, [one]) == [expected], one
    for counter in ("claimed", "carried", "retimed", "copied", "conflicting", "held", "unbilled", "voided", "duplicate", "missing"):
        assert sum(getattr(s.counts, counter) for s in found), f"no record is {counter}"


def test_an_answer_about_many_that_is_too_large_is_asked_for_by_fewer(clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    of = written(chance)
    fill(clickhouse, of, chance)
    asked = {tenant: Asked(tenant, Cutoff({PARTITION: RECORDS}, 1 << 60), PriceBook()) for tenant in TENANTS}
    monkeypatch.setattr(statements_from_table, "ROWS_MAX", 10)
    with pytest.raises(TooManyRows):
        statements_of(clickhouse, PARTITION, list(asked.values()))

    def ask(tenants: Sequence[str]) -> dict[str, Statement]:
        return dict(zip(tenants, statements_of(clickhouse, PARTITION, [asked[t] for t in tenants]), strict=True))

    assert dict(together(clickhouse, TENANTS, ask)) == {tenant: of.statement(one) for tenant, one in asked.items()}


# --- groups


def test_groups_are_bounded_by_what_their_tenants_have_and_by_their_number(clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bill_from_tables, "GROUP_FACTS_MAX", 10)
    monkeypatch.setattr(bill_from_tables, "NAMED_MAX", 3)
    facts = {"a": 5, "b": 5, "c": 1, "large": 99, "d": 0, "e": 0, "f": 0, "g": 0}
    assert groups_of(facts, facts) == [["a", "b"], ["c"], ["large"], ["d", "e", "f"], ["g"]]
    chance = random.Random(2)
    of = written(chance)
    insert(clickhouse, "usage", [row(tenant, record) for tenant, record in of.records])
    assert facts_of(clickhouse, PARTITION, 100, TENANTS) == {t: sum(who == t for who, r in of.records if r.offset < 100) for t in TENANTS}


class Engine(ClickHouse):
    """Counts what it is asked; `away`: nobody gets an answer."""

    def __init__(self, away: bool = False) -> None:
        self.away = away

    def value(self, *_arguments: Any, **_named: Any) -> Any:
        if self.away:
            raise ClickHouseUnavailable("refused")
        return 1


@pytest.mark.parametrize("error", [ClickHouseUnavailable("silence"), ClickHouseError(159, "too long"), KeyError("sum_calls")])
def test_what_fails_for_one_fails_for_that_one_alone(error: Exception) -> None:
    asked: list[Sequence[int]] = []

    def ask(keys: Sequence[int]) -> dict[int, int]:
        asked.append(keys)
        if 77 in keys:
            raise error
        return {key: -key for key in keys}

    found = dict(together(Engine(), list(range(250)), ask))
    assert found.pop(77) is error
    assert found == {n: -n for n in range(250) if n != 77}
    assert len(asked) <= 2 * 8 + 1, "halves, not one by one"
    assert dict(together(Engine(), [], ask)) == {}


def test_an_answer_that_leaves_one_out_is_that_ones_error() -> None:
    found = dict(together(Engine(), [1, 2, 3], lambda keys: {key: key for key in keys if key != 2}))
    assert (found[1], found[3], type(found[2])) == (1, 3, KeyError)


def test_where_nobody_gets_an_answer_no_halves_are_asked() -> None:
    asked: list[Sequence[int]] = []

    def ask(keys: Sequence[int]) -> dict[int, int]:
        asked.append(keys)
        raise ClickHouseUnavailable("refused")

    with pytest.raises(ClickHouseUnavailable):
        list(together(Engine(away=True), [1, 2, 3], ask))
    assert len(asked) == 1


# --- unreadable records


@pytest.mark.parametrize("seed", range(6))
def test_unreadable_records_of_many_tenants_are_those_of_each_alone(clickhouse: ClickHouse, seed: int) -> None:
    chance = random.Random(seed)
    dead = chance.sample(range(RECORDS), 12)
    insert(
        clickhouse,
        "usage",
        [
            {"kafka_partition": PARTITION, "kafka_offset": at, "readable": int(at in dead[:2]), "sha256": digest(at).decode(), "fact": "x"}
            for at in range(RECORDS)
        ],
    )
    insert(clickhouse, "usage", [{"kafka_partition": PARTITION, "kafka_offset": at, "readable": 0, "fact": "x"} for at in dead])
    given_up = [
        {
            "topic": "bills",
            "kind": "decided",
            "fact": "RecordWrittenOff",
            "key": f"usage/{PARTITION}/{at}",
            "kafka_offset": n,
            "step": n,
            "body": json.dumps({"topic": "usage", "partition": PARTITION, "offset": at, "sha256": ("00" * 32) if wrong else "ab" * 32}),
        }
        for n, (at, wrong) in enumerate((at, chance.random() < 0.7) for at in (dead if seed % 2 else dead[: 6 + seed]))
    ]
    insert(clickhouse, "history_rows", given_up)
    insert(
        clickhouse,
        "usage_held_rows",
        [
            {"kafka_partition": PARTITION, "kafka_offset": at, "tenant": tenant, "code": code, "freed_at": chance.choice([-1, -1, 230])}
            for tenant, at, code in [
                (TENANTS[0], dead[3], "unreadable"),
                (TENANTS[1], 5, "chain_broken"),
                (TENANTS[2], 200, "chain_broken"),
            ]
        ],
    )
    below = {tenant: chance.choice([0, 60, 150, RECORDS]) for tenant in TENANTS}
    found = unreadable_of(clickhouse, below)
    assert found == {tenant: unreadable_below(clickhouse, tenant, end) for tenant, end in below.items()}
    assert any(one.excluded for one in unreadable_of(clickhouse, dict.fromkeys(TENANTS, RECORDS)).values())
