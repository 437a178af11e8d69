"""Usage of many tenants from one pass over a partition: by tenant, in the order of the log, in bounded memory (K20)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import pytest

from events.facts.usage import InvocationSettled
from events.log.record import Record
from events.producers.batch_proof import EPOCH_PROOF
from projections.bills import usage_spool
from projections.bills.usage_spool import Wanted, read_usage
from tests.support.todays_codec import todays_codec

CODEC = todays_codec()
PARTITION = 2
REVOKED = {"version": 1, "event_id": "e", "occurred_at": 1, "producer": "x", "tenant": "a", "key_id": "k", "reason": "", "by": "u"}


class Recorded:
    """As a Reader of one partition."""

    def __init__(self, records: list[Record]) -> None:
        self.records, self.passes = records, 0

    def read(self, topic: str, start: Any = None, end: Mapping[int, int] | None = None) -> Iterator[Record]:
        assert topic == "usage" and end is not None and not any(at for p, at in end.items() if p != PARTITION)
        self.passes += 1
        yield from (r for r in self.records if r.offset < end[PARTITION])


def settled(tenant: str, offset: int, key: str | None = None, **more: Any) -> Record:
    body: dict[str, Any] = {k: f.default for k, f in InvocationSettled.model_fields.items() if not f.is_required()}
    body |= {k: "x" for k, f in InvocationSettled.model_fields.items() if f.is_required()}
    body |= {"event_id": f"00000000-0000-0000-0000-{offset:012}", "occurred_at": 1_000_000, "tenant": tenant, "sequence": offset + 1}
    body |= {"previous_sha256": bytes(32), "invocation_key": b"", "status": 200, "calls": 1, **more}
    value = CODEC.encode_dict("InvocationSettled", body)
    return Record("usage", PARTITION, offset, 7, (tenant if key is None else key).encode(), value, {EPOCH_PROOF: b"p%d" % offset})


def spooled(records: list[Record], below: Mapping[str, int], written_off: Mapping[int, set[bytes]] | None = None) -> usage_spool.UsageSpool:
    reader: Any = Recorded(records)
    wanted = {tenant: Wanted(0, end) for tenant, end in below.items()}
    spool = read_usage(reader, CODEC, PARTITION, wanted, written_off or {})
    assert reader.passes == 1
    return spool


@pytest.mark.parametrize("buffered", [1, 7, 20_000])
def test_each_tenant_has_its_records_below_its_own_cut_as_often_as_they_are_asked(monkeypatch: pytest.MonkeyPatch, buffered: int) -> None:
    monkeypatch.setattr(usage_spool, "BUFFERED_MAX", buffered)
    chance = random.Random(5)
    records = [settled(chance.choice("abcd"), offset, bytes_in=offset) for offset in range(200)]
    below = {"a": 200, "b": 120, "c": 0}
    spool = spooled(records, below)
    for tenant in ("a", "b", "c", "d"):
        mine = [r for r in records if r.key == tenant.encode() and r.offset < below.get(tenant, 0)]
        for _ in range(2):
            entries = list(spool.of(tenant))
            assert [e.record.offset for e in entries] == [r.offset for r in mine]
            assert [e.record.sha256 for e in entries] == [sha256(r.value or b"").digest() for r in mine]
            assert [e.proof for e in entries] == [b"p%d" % r.offset for r in mine]
            assert all(e.is_own and e.claim(e.record).sequence == e.record.offset + 1 for e in entries)
    spool.close()


def test_what_was_read_is_what_the_record_says() -> None:
    (entry,) = spooled([settled("a", 0, outcome="succeeded", model="m", latency_us=400, key_id="k1", bytes_in=5)], {"a": 1}).of("a")
    record = entry.record
    assert (record.partition, record.append_us, record.fact, record.outcome, record.model) == (
        2,
        7000,
        "InvocationSettled",
        "succeeded",
        "m",
    )
    assert (entry.key_id, entry.previous_sha256, record.quantities.count(5)) == ("k1", bytes(32), 1)


def test_unreadable_written_off_and_foreign_records_are_told_apart() -> None:
    own = settled("a", 0)
    garbage, foreign = (Record("usage", PARTITION, n, 7, key, b"garbage", {}) for n, key in ((1, b"a"), (2, b"b")))
    negative, disguised = settled("a", 3, key="b", bytes_in=-1), settled("a", 4, key="b")
    of_another_topic = Record("usage", PARTITION, 5, 7, b"a", CODEC.encode_dict("ApiKeyRevoked", REVOKED), {})
    given_up = Record("usage", PARTITION, 6, 7, b"a", b"lost", {})
    again = settled("a", 7)
    records = [own, garbage, foreign, negative, disguised, of_another_topic, given_up, again]
    written_off = {6: {sha256(b"lost").digest()}, 7: {sha256(again.value or b"").digest()}, 1: {sha256(b"other").digest()}}
    spool = spooled(records, {"a": 8}, written_off)
    assert [(e.record.offset, e.is_own) for e in spool.of("a")] == [(0, True), (4, False), (7, True)], (
        "what can be read counts, written off or not"
    )
    assert spool.unreadable == {1: b"a", 2: b"b", 3: b"b", 5: b"a"}
    assert (spool.excluded, spool.written_off) == ({6}, {6, 7})
