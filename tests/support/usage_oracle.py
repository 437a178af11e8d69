"""What the usage table must hold, worked out from Kafka with other people's clients: confluent_kafka, fastavro, clickhouse-connect."""

from __future__ import annotations

import hashlib
import io
import json
import re
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import clickhouse_connect
import confluent_kafka as ck
import fastavro

from events.log.sign_in import client_config
from events.process.passwords import clickhouse_password
from events.process.settings import Settings
from tests.support.decided_log import end_of

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COUNTS = frozenset(  # repeated here, so that a count forgotten there is noticed
    [
        "sequence",
        "attempt",
        "status",
        "calls",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "bytes_in",
        "bytes_out",
        "images",
        "media_us",
        "gpu_us",
        "cpu_us",
        "queue_us",
        "ttft_us",
        "latency_us",
        "batch_size",
        "price_version",
        "reserved_micros",
        "output_tokens_max",
        "count",
    ]
)
_REFERENCES = frozenset({"opened", "voided"})
_HASH = "hex(sipHash128(*)) AS row_hash"
_Match = tuple[int, int, int, bytes, str]
_found_same = set[_Match]()
"""Partition, offset, append ms and digest of a record, hash of a whole row: field by field they were found to be the same. The logs of tests
grow, and each comparison is of the whole log."""


@dataclass(frozen=True)
class OracleRecord:
    partition: int
    offset: int
    time_ms: int
    value: bytes | None


def read_topic(settings: Settings, topic: str) -> list[OracleRecord]:
    """Every record of a topic, with nothing of ours."""
    consumer = ck.Consumer({**client_config(settings), "group.id": "oracle", "enable.auto.commit": False, "auto.offset.reset": "error"})
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    ends = {p: end_of(consumer, topic, p) for p in partitions}
    consumer.assign([ck.TopicPartition(topic, p, 0) for p, end in ends.items() if end])
    seen, left = list[OracleRecord](), sum(ends.values())
    while left > 0:
        messages = consumer.consume(min(left, 10_000), 60)
        assert messages, f"{topic}: {left} records did not come"
        for m in messages:
            assert m.error() is None, m.error()
            partition, offset, value = m.partition(), m.offset(), m.value()
            assert partition is not None and offset is not None and not isinstance(value, str)
            if offset < ends[partition]:
                seen.append(OracleRecord(partition, offset, m.timestamp()[1], value))
                left -= 1
    consumer.close()
    return seen


class Schemas:
    """By id, from the registry over plain HTTP."""

    def __init__(self, settings: Settings) -> None:
        self._url, self._known = settings.registry, dict[int, Any]()
        subjects = _get(f"{self._url}/subjects")
        self.usage_ids = {_get(f"{self._url}/subjects/{s}/versions/latest")["id"] for s in subjects if s.startswith("usage-")}

    def of(self, schema_id: int) -> Any:
        if schema_id not in self._known:
            definition = _get(f"{self._url}/schemas/ids/{schema_id}")["schema"]
            self._known[schema_id] = fastavro.parse_schema(_plain(json.loads(definition)))
        return self._known[schema_id]


def _get(url: str, tries: int = 3) -> Any:
    """A busy registry has been seen to hang up on a request."""
    try:
        with urllib.request.urlopen(url, timeout=10) as r:
            return json.load(r)
    except OSError:
        if tries == 1:
            raise
        return _get(url, tries - 1)


def decoded(value: bytes | None, schemas: Schemas) -> tuple[str, dict[str, Any]] | None:
    """(fact, body), or None when a strict reader refuses it."""
    if value is None or len(value) < 5 or value[0] != 0 or len(value) > 512 * 1024:
        return None
    schema_id = int.from_bytes(value[1:5], "big")
    if schema_id not in schemas.usage_ids:
        return None
    schema, stream = schemas.of(schema_id), io.BytesIO(value)
    stream.seek(5)
    try:
        body: Any = fastavro.schemaless_reader(stream, schema, None)
    except Exception:
        return None
    if stream.tell() != len(value) or not _UUID.fullmatch(body["event_id"]) or any(body[f] < 0 for f in _COUNTS & body.keys()):
        return None
    return schema["name"].rpartition(".")[2], body


def canonical(value: bytes | None, body: Mapping[str, Any], schemas: Schemas) -> bool:
    """Whether encoding the body again gives the same bytes."""
    assert value is not None
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schemas.of(int.from_bytes(value[1:5], "big")), body)
    return stream.getvalue() == value[5:]


def compare(settings: Settings) -> dict[str, int]:
    """Asserts that `usage_rows` is the topic, record for record and field for field, and `usage_unreadable` the rest. Returns counts."""
    schemas, records = Schemas(settings), read_topic(settings, "usage")
    there = table_rows(settings, f"SELECT kafka_partition, kafka_offset, {_HASH} FROM usage_rows")
    hashes: dict[tuple[int, int], str] = {(r["kafka_partition"], r["kafka_offset"]): r["row_hash"] for r in there}
    assert len(hashes) == len(there), "an offset has more than one row"
    tombs = table_rows(settings, "SELECT kafka_partition, kafka_offset, sha256 FROM usage_unreadable")
    dead = {(r["kafka_partition"], r["kafka_offset"]): bytes(r["sha256"]) for r in tombs}
    digests = [hashlib.sha256(record.value or b"").digest() for record in records]
    matches = [
        (r.partition, r.offset, r.time_ms, digest, hashes.get((r.partition, r.offset), ""))
        for r, digest in zip(records, digests, strict=True)
    ]
    rows = _rows_of(settings, [match for match in matches if match not in _found_same])
    readable = 0
    for record, match in zip(records, matches, strict=True):
        position, digest = match[:2], match[3]
        if match in _found_same:
            del hashes[position]
            readable += 1
            continue
        expected = decoded(record.value, schemas)
        if expected is None:
            assert dead.pop(position, None) == digest, f"{position} has no tombstone, or the wrong one"
            assert position not in hashes, f"{position} is unreadable, but there is a row"
            continue
        there_is_one = hashes.pop(position, None)
        if not there_is_one and not canonical(record.value, expected[1], schemas):
            # fastavro reads numbers of more than 64 bits and booleans of any value; a strict reader may refuse them.
            assert dead.pop(position, None) == digest, f"{position} has neither row nor tombstone"
            continue
        readable += 1
        assert there_is_one, f"{position} has no row"
        row = rows[position]
        _same(position, row, expected, record, digest)
        _found_same.add((*match[:4], row["row_hash"]))
    assert not hashes and not dead, f"rows of no record: {list(hashes)[:5]} {list(dead)[:5]}"
    return {"records": len(records), "readable": readable, "unreadable": len(records) - readable}


def _rows_of(settings: Settings, matches: Iterable[_Match]) -> dict[tuple[int, int], dict[str, Any]]:
    """The rows of these records, and of others behind them, by position."""
    first = dict[int, int]()
    for partition, offset, _, _, row_hash in matches:
        if row_hash:
            first[partition] = min(offset, first.get(partition, offset))
    wanted = " OR ".join(f"kafka_partition = {partition} AND kafka_offset >= {offset}" for partition, offset in first.items()) or "false"
    rows = table_rows(settings, f"SELECT *, {_HASH} FROM usage_rows WHERE {wanted}")
    return {(r["kafka_partition"], r["kafka_offset"]): r for r in rows}


def table_rows(settings: Settings, sql: str) -> list[dict[str, Any]]:
    client = clickhouse_connect.get_client(
        host=settings.host,
        port=settings.clickhouse_port,
        username=settings.clickhouse_user,
        password=clickhouse_password(settings),
        database=settings.clickhouse_database,
        autogenerate_session_id=False,
    )
    try:
        result = client.query(sql, query_formats={"FixedString": "bytes"})
        return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]
    finally:
        client.close()


def _same(
    position: tuple[int, int], row: Mapping[str, Any], expected: tuple[str, Mapping[str, Any]], record: OracleRecord, digest: bytes
) -> None:
    fact, body = expected
    assert (row["fact"], row["kafka_time_us"], bytes(row["sha256"])) == (fact, record.time_ms * 1000, digest), position
    for name, value in body.items():
        got = row[name]
        wanted: Any = value
        if isinstance(got, UUID):
            wanted = _uuid(value) if name in _REFERENCES else UUID(value)
        elif isinstance(value, bytes) and isinstance(got, str):  # the client shows bytes that are no text as hex
            wanted = value.hex() if got == value.hex() else value.decode()
        assert got == wanted, f"{position} {name}: {got!r} is not {wanted!r}"


def _uuid(text: str) -> UUID:
    return UUID(text) if _UUID.fullmatch(text.lower()) else UUID(int=0)


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return node["type"] if "logicalType" in node else {k: v if k in ("default", "doc") else _plain(v) for k, v in node.items()}
    return [_plain(v) for v in node] if isinstance(node, list) else node


def daily(records: Iterable[tuple[str, Mapping[str, Any], int]]) -> dict[tuple[str, str, str], tuple[int, int, int, int]]:
    """(tenant, model, version) → calls, succeeded, refused, bytes_in; each event_id once. Records: (fact, body, append µs) in log order."""
    seen, voided, out = set[tuple[str, str]](), set[str](), dict[tuple[str, str, str], list[int]]()
    kept = list[tuple[str, Mapping[str, Any]]]()
    for fact, body, _ in records:
        key = body["tenant"], body["event_id"]
        if key not in seen:
            seen.add(key)
            kept.append((fact, body))
            if fact == "InvocationVoided":
                voided.add(body["voided"])
    for fact, body in kept:
        if fact not in ("InvocationSettled", "InvocationRefused"):
            continue
        line = out.setdefault((body["tenant"], body["model"], body.get("model_version", "")), [0, 0, 0, 0])
        if fact == "InvocationRefused":
            line[2] += body["count"]
        elif body["event_id"] not in voided and not body["shadow"]:
            billed = body["outcome"] == "succeeded"
            line[0] += body["calls"] * billed
            line[1] += billed
            line[3] += body["bytes_in"] * billed
    return {k: (v[0], v[1], v[2], v[3]) for k, v in out.items()}
