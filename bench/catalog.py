"""The history and the catalog at size: what the last fact of a key with many parts costs beside the first, and pages of ten thousand models.

Without Kafka: records are made as the relay makes them, folded by the worker's own fold, and written into the engine.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from events.facts.accounts import KEY_DIMENSIONS
from events.facts.deployments import ServiceSpec
from events.log.chain import FIRST, Chain, ChainPosition
from events.log.record import LogRecord, Record
from events.process.signing_keys import PublicKeys, SigningKey
from events.schema.codec import Codec, Schema, SchemaSet, todays_schemas
from infra.launcher import Stack
from projections.catalog.document_cache import DocumentCache
from projections.catalog.queries import Catalog, Wanted
from projections.catalog.rows import PartitionFold
from projections.catalog.sink import newest_parts
from projections.ingest.clickhouse import ClickHouse
from projections.tables import apply_tables

NAME = "catalog"
CHUNK = 500
KEYS, VERSIONS_OF_ONE = 10_000, 1_000
MODELS, VERSIONS, OWNERS = 10_000, 10, 100
QUESTIONS = 200
STEP_US = 1_000_000
"""Between two facts, by the clock of the facts."""
DIGEST = "sha256:" + "0" * 64
Fact = tuple[str, dict[str, Any]]


def run(stack: Stack, quick: bool) -> list[dict[str, Any]]:
    stack.up({"clickhouse"})
    apply_tables(stack.settings)
    clickhouse, size = ClickHouse(stack.settings), 20 if quick else 1
    keys = _Folded("accounts", clickhouse).all(_tenant(KEYS // size))
    versions = _Folded("models", clickhouse).all(_model("model-vision-acme-big", VERSIONS_OF_ONE // size))
    clickhouse.command("TRUNCATE TABLE history_rows")
    models = [f"model-vision-acme-m{n:05}" for n in range(MODELS // size)]
    folded, deployed = _Folded("models", clickhouse), _Folded("deployments", clickhouse)
    folded.all(fact for model in models for fact in _model(model, VERSIONS))
    deployed.all(fact for model in models for fact in [_deployed(model)])
    catalog, chance, end_us = Catalog(clickhouse), random.Random(1), folded.at_us
    bare = _times(lambda: clickhouse.rows("SELECT 1 AS one"))

    def page(**more: Any) -> list[float]:
        return _times(lambda: catalog.page(Wanted(after=chance.choice(models), **more)))

    def past() -> list[float]:
        return _times(lambda: catalog.page(Wanted(after=chance.choice(models), as_of=chance.randrange(end_us))))

    return [
        _flat(f"row of the last of {KEYS // size:,} keys of a tenant", keys, "stored"),
        _flat("… its fold", keys, "folded"),
        _flat(f"row of the last of {VERSIONS_OF_ONE // size:,} versions of a model", versions, "stored"),
        _flat("… its fold", versions, "folded"),
        _row(f"page of 50 of {len(models):,} models × {VERSIONS} versions", page(), bare, "≤ 50"),
        _row("… of one owner", page(tenant="owner-7"), bare, "≤ 50"),
        _row("… as of some instant", past(), bare, "≤ 100"),
        _row("one model as of some instant", _times(lambda: catalog.model(chance.choice(models), chance.randrange(end_us))), bare, "≤ 100"),
    ]


class _Folded:
    """A partition, written and folded."""

    def __init__(self, topic: str, clickhouse: ClickHouse) -> None:
        self._topic, self._clickhouse = topic, clickhouse
        schemas = SchemaSet()
        for schema_id, (subject, definition) in enumerate(sorted(todays_schemas().items()), 1):
            schemas.add(Schema.of(schema_id, subject, definition))
        self._codec, self._key = Codec(schemas), SigningKey(bytes(32))
        documents = DocumentCache(topic, partial(newest_parts, clickhouse, topic, 0))
        self._fold = PartitionFold(topic, 0, self._codec, Chain[LogRecord](PublicKeys([self._key.public])), documents)
        self._position, self._hash, self.at_us = 0, FIRST, 0
        self._take("StoreOpened", {"store": "bench", "previous_store": "", "previous_position": 0}, signed=True)

    def all(self, facts: Iterator[Fact] | Any) -> list[tuple[float, float]]:
        """Per chunk: seconds of folding, and bytes of documents stored, of one fact."""
        found: list[tuple[float, float]] = []
        chunk: list[Fact] = []
        for fact in facts:
            chunk.append(fact)
            if len(chunk) == CHUNK:
                found.append(self._chunk(chunk))
                chunk = []
        return [*found, self._chunk(chunk)] if chunk else found

    def _chunk(self, facts: list[Fact]) -> tuple[float, float]:
        began = time.perf_counter()
        for number, (name, body) in enumerate(facts, 1):
            self._take(name, body, signed=number == len(facts))
        rows, _ = self._fold.fold()
        seconds = time.perf_counter() - began
        self._clickhouse.insert_rows("history_rows", rows)
        self._fold.documents.release(self._fold.documents.take_changed())
        return seconds / len(facts), sum(len(row["head"]) + sum(map(len, row["parts"].values())) for row in rows) / len(facts)

    def _take(self, name: str, body: dict[str, Any], *, signed: bool) -> None:
        self._position += 1
        self.at_us += STEP_US
        common = {"event_id": f"00000000-0000-0000-0000-{self._position:012}", "occurred_at": self.at_us, "producer": "bench", "by": "u"}
        frame = self._codec.encode_dict(name, {"version": 1, **common, **body}, self._topic if name == "StoreOpened" else None)
        at = ChainPosition("bench", self._position, self._hash)
        self._hash = at.sha256(b"k", frame)
        headers = at.signed_headers(self._key, self._topic, 0, self._hash) if signed else at.headers
        record = Record(self._topic, 0, self._position - 1, 1, b"k", frame, headers)
        self._fold.take(record, record.headers)


def _tenant(keys: int) -> Iterator[Fact]:
    yield "TenantCreated", {"tenant": "acme", "display_name": "Acme", "price_book": "standard"}
    names = dict.fromkeys(KEY_DIMENSIONS, "vision")
    for n in range(keys):
        key = {"key_id": f"key-{n:06}", "key_sha256": f"{n:064x}", "user": f"user-{n % 100}", "scopes": ["invoke"], "expires_at": None}
        yield "ApiKeyIssued", {"tenant": "acme", **key, **names, "labels": {"env": "prod"}}


def _model(model: str, versions: int) -> Iterator[Fact]:
    owner = f"owner-{sum(model.encode()) % OWNERS}"
    names = {"domain": "vision", "team": "core", "name": model, "scenario": "digits", "task": "image-classification", "owner": "ann"}
    more = {"description": "Handwritten digits", "tags": ["digits", "demo"]}
    compliance = {"licence": "MIT", "data_sources": ["uci"], "data_level": "public"}
    yield "ModelRegistered", {"model": model, "tenant": owner, **names, **more, "compliance": compliance}
    shape: dict[str, Any] = {"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}
    technical = {"format": "onnx", "framework": "sklearn", "precision": "FP32", "inputs": [shape], "outputs": [shape]}
    for n in range(versions):
        one = {"model": model, "tenant": owner, "model_version": f"1.{n}.0"}
        yield (
            "ModelVersionAdded",
            {**one, "technical": technical, "artifact": DIGEST, "artifact_bytes": 1, "release_notes": "", "lineage": {}},
        )
        yield "ModelVersionSubmitted", one
        for review in ("business", "security"):
            yield "ModelVersionReviewed", {**one, "review": review, "verdict": "approved", "comment": ""}
        yield "ModelVersionApproved", {**one, "business_by": "b", "security_by": "s"}


def _deployed(model: str) -> Fact:
    return "VersionDeployed", {
        "tenant": "acme",
        "model": model,
        "model_version": "1.0.0",
        "artifact": DIGEST,
        "spec": ServiceSpec().model_dump(),
    }


def _times(ask: Callable[[], object]) -> list[float]:
    """Milliseconds of each of QUESTIONS, sorted."""
    found: list[float] = []
    for _ in range(QUESTIONS):
        began = time.perf_counter()
        ask()
        found.append((time.perf_counter() - began) * 1e3)
    return sorted(found)


def _row(metric: str, times: list[float], bare: list[float], target: str) -> dict[str, Any]:
    p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
    baseline = f"SELECT 1: p50 {statistics.median(bare):.1f}, p99 {bare[int(len(bare) * 0.99)]:.1f}"
    return {
        "metric": f"{metric}: p99 (p50 {p50:.1f})",
        "value": round(p99, 1),
        "unit": "ms",
        "baseline": baseline,
        "ratio": p50 / statistics.median(bare),
        "target": target,
    }


def _flat(metric: str, chunks: list[tuple[float, float]], what: str) -> dict[str, Any]:
    """The last chunk beside the first; medians of three, since a chunk takes milliseconds."""
    at = 0 if what == "folded" else 1
    first, last = (statistics.median(chunk[at] for chunk in some) for some in (chunks[:3], chunks[-3:]))
    scale, unit = (1e6, "µs") if what == "folded" else (1.0, "B")
    return {
        "metric": metric,
        "value": round(last * scale, 1),
        "unit": unit,
        "baseline": f"the first: {first * scale:.1f}",
        "ratio": last / first,
    }
