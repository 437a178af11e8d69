"""Raw bodies in an object container: any Avro reader must find the same facts in it, each with its own coordinate."""

from __future__ import annotations

import hashlib
import io
import json
import random
from typing import Any

import fastavro
from hypothesis import given
from hypothesis import strategies as st

from events.facts.topics import entries
from events.log.record import Record
from events.schema.codec import Undecodable, todays_schemas
from projections.ingest import avro_container as container
from projections.usage.table import COLUMNS, LOG_COLUMNS, create_table, insert_for
from projections.usage.validator import validate
from tests.support.todays_codec import todays_codec

USAGE = [e for e in entries() if e.topic == "usage"]


CODEC = todays_codec()


def refusal(seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    return {
        "event_id": f"{chance.getrandbits(128):032x}",
        "occurred_at": chance.randrange(2**50),
        "producer": "g",
        "tenant": chance.choice(["a", "ü" * chance.randrange(200), ""]),
        "epoch": "e",
        "sequence": chance.randrange(1, 2**62),
        "key_id": "",
        "user": "",
        "region": "",
        "model": "m",
        "operation": "infer",
        "status": 429,
        "error_code": "limit",
        "count": chance.randrange(9),
        "causation_id": "",
        "correlation_id": "",
        "previous_sha256": bytes(32),
    }


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40), st.integers(0, 2**63 - 100), st.integers(0, 2**42))
def test_another_avro_reader_finds_every_fact_with_its_coordinate(seeds: list[int], first: int, time_ms: int) -> None:
    bodies = [refusal(s) for s in seeds]
    records = [
        Record("usage", i % 7, first + i, time_ms, b"k", CODEC.encode_dict("InvocationRefused", b), {}) for i, b in enumerate(bodies)
    ]
    extended = container.extended(CODEC.schema_for("InvocationRefused").definition)
    wrapped = container.wrap(extended.encode(), records, b"g" * 16, b"s" * 16)
    read: list[Any] = list(fastavro.reader(io.BytesIO(b"".join(wrapped.pieces))))
    assert wrapped.rows == len(records)
    for got, body, record in zip(read, bodies, records, strict=True):
        partition, offset, appended, digest, guard = container.TAIL.unpack(got.pop("log_tail"))
        assert (partition, offset, appended, guard) == (record.partition, record.offset, time_ms, b"g" * 16)
        assert digest == hashlib.sha256(record.value or b"").digest()
        assert {k: got[k] for k in ("tenant", "sequence", "count")} == {k: body[k] for k in ("tenant", "sequence", "count")}


@given(st.integers(-(2**63), 2**63 - 1))
def test_zigzag_is_avros(n: int) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "long", n)
    assert container.zigzag(n) == out.getvalue()


def test_every_field_of_every_usage_fact_has_a_column() -> None:
    columns = {c.name for c in COLUMNS}
    for entry in USAGE:
        assert set(entry.cls.model_fields) <= columns, f"{entry.name}: {set(entry.cls.model_fields) - columns}"
    assert not columns & {c.name for c in LOG_COLUMNS}


def test_every_column_is_described() -> None:
    assert all(c.comment for c in (*COLUMNS, *LOG_COLUMNS))
    assert create_table("usage").count("COMMENT '") == len(COLUMNS) + len(LOG_COLUMNS) + 3


def test_every_count_and_text_of_a_fact_is_checked_by_the_insert() -> None:
    for entry in USAGE:
        insert = insert_for(1, todays_schemas()[entry.subject])
        fields = {f["name"]: f["type"] for f in json.loads(todays_schemas()[entry.subject])["fields"]}
        texts = {n for n, t in fields.items() if t == "string" or (isinstance(t, dict) and t.get("type") in ("string", "map"))}
        counts = {n for n, t in fields.items() if t == "long"}
        known = {c.name: c for c in COLUMNS}
        assert all(known[n].text for n in texts), [n for n in texts if not known[n].text]
        assert all(known[n].count for n in counts), [n for n in counts if not known[n].count]
        assert insert.fact == entry.name


@given(st.integers(0, 10**6))
def test_the_validator_accepts_every_fact_and_no_truncated_one(seed: int) -> None:
    body = refusal(seed)
    body["event_id"] = "01234567-89ab-cdef-0123-456789abcdef"
    frame = CODEC.encode_dict("InvocationRefused", body)
    schema = CODEC.schema_for("InvocationRefused")
    validate(schema, frame)
    for damaged in (frame[:-1], frame + b"\x00", frame[: 5 + seed % (len(frame) - 5)]):
        try:
            validate(schema, damaged)
        except Undecodable:
            continue
        raise AssertionError(f"{damaged!r} was taken")
