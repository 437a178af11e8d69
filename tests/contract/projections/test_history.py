"""The history in ClickHouse: what a row costs, what a restart finds in it, and the catalog at any instant, compared with whole documents."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest

from events.facts.accounts import KEY_DIMENSIONS
from events.facts.deployments import ServiceSpec
from events.facts.topics import FACTS
from events.process.settings import Settings
from lifecycle.resources import QUOTA_DEFAULT
from projections.catalog.document_cache import DocumentCache
from projections.catalog.documents import evolve
from projections.catalog.parts import split
from projections.catalog.queries import Catalog, Wanted
from projections.catalog.sink import INSERT_BYTES_MAX, HistorySink, newest_parts
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.sink import Chunk
from projections.tables import apply_tables
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess
from tests.support.folded_log import CODEC, Log, base, opened

pytestmark = pytest.mark.engine

KEYS = 1_200
"""Of one tenant: as whole documents they were an insert of 293 MB."""
MODELS, VERSIONS = 12, 3
TECHNICAL = {"format": "onnx", "framework": "f", "precision": "FP32", "inputs": [], "outputs": []}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    engine = ClickHouseProcess(tmp_path_factory.mktemp("history"))
    engine.start()
    apply_tables(engine.settings)
    yield engine.settings
    engine.stop()


@pytest.fixture
def empty(settings: Settings) -> ClickHouse:
    clickhouse = ClickHouse(settings)
    clickhouse.command("TRUNCATE TABLE history_rows")
    return clickhouse


def issued(number: int) -> tuple[str, dict[str, Any]]:
    key = {"key_id": f"key-{number}", "key_sha256": "00" * 32, "user": "ann", "scopes": ["invoke"], "expires_at": None, "by": "root"}
    return "ApiKeyIssued", {
        **base(number),
        "version": number,
        "tenant": "acme",
        **key,
        **dict.fromkeys(KEY_DIMENSIONS, "x"),
        "labels": {"env": "prod"},
    }


def write(clickhouse: ClickHouse, rows: list[dict[str, Any]]) -> None:
    if rows:
        clickhouse.insert_rows("history_rows", rows)


class Chained(Log):
    """A log whose facts follow each other in one store."""

    def __init__(self, topic: str, **more: Any) -> None:
        super().__init__(topic, **more)
        self.rows = opened(self)
        self.position = 1

    def add(self, fact: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        self.position += 1
        rows = self.put(fact, ("s", self.position, self.position - 1))
        self.rows += rows
        return rows


def test_a_key_of_a_tenant_costs_what_it_says_however_many_there_are(empty: ClickHouse) -> None:
    log = Chained("accounts")
    log.add(("TenantCreated", {**base(1), "version": 1, "tenant": "acme", "display_name": "Acme", "price_book": "standard", "by": "root"}))
    for number in range(2, KEYS + 2):
        log.add(issued(number))
    stored = [len(row["head"]) + sum(map(len, row["parts"].values())) for row in log.rows[2:]]
    assert max(stored) < 2 * min(stored) and max(stored) < 1_000, "the last costs what the first does"
    write(empty, log.rows)
    (tenant,) = empty.rows("SELECT tenant, display_name, keys FROM tenants")
    assert tenant == {"tenant": "acme", "display_name": "Acme", "keys": KEYS}
    # A worker that begins here asks for what the next fact looks at, and not for the other 1 200.
    again = Chained("accounts", load=partial(newest_parts, empty, "accounts", 0))
    again.add(("ApiKeyRevoked", {**base(9), "version": 9, "tenant": "acme", "key_id": "key-7", "reason": "lost", "by": "root"}))
    (row,) = again.rows[1:]
    revoked = json.loads(row["parts"]["keys/key-7"])
    assert (row["head"], list(row["parts"]), row["tenant"]) == ("", ["keys/key-7"], "acme")
    assert (revoked["user"], revoked["revoked_because"]) == ("ann", "lost")
    assert len(again.documents.document("acme", ["keys/key-7", "keys/key-8"])["keys"]) == 2
    assert len(again.documents.document("acme")["keys"]) == KEYS


def test_a_tenant_is_shown_with_its_quota_the_default_one_until_another_is_decided(empty: ClickHouse) -> None:
    log = Chained("accounts")
    log.add(("TenantCreated", {**base(1), "version": 1, "tenant": "acme", "display_name": "Acme", "price_book": "standard", "by": "root"}))
    names = ("replicas", "cpu_millis", "gpu_millis", "memory_bytes")
    question = f"SELECT {', '.join(f'quota_{name} AS {name}' for name in names)} FROM tenants"
    write(empty, log.rows)
    assert empty.rows(question) == [asdict(QUOTA_DEFAULT)]
    decided = dict(zip(names, (7, 2500, 0, 1 << 40), strict=True))
    write(empty, log.add(("TenantQuotaSet", {**base(2), "version": 2, "tenant": "acme", **decided, "reason": "a project", "by": "olga"})))
    assert empty.rows(question) == [decided]


HOSTILE = (
    "a'b",
    "back\\slash",
    "new\nline",
    "tab\t",
    "null\0x",
    "ключ",
    'quote"',
    "{k:String}",
    "a,b",
    "[x]",
    "end\\",
    "'",
    "%41",
    "\r\n",
    "x" * 1000,
)


def test_names_with_any_characters_are_found_again(empty: ClickHouse) -> None:
    """Whoever can write to `alerts` chooses them."""
    rows = [
        {"topic": "alerts", "kafka_partition": 0, "kafka_offset": i, "step": i, "kind": "observed", "key": name}
        | {"head": json.dumps({"subject": name}), "parts": {f"open/{name}": json.dumps({"n": i})}}
        for i, name in enumerate(HOSTILE)
    ]
    write(empty, rows)
    cache = DocumentCache("alerts", partial(newest_parts, empty, "alerts", 0))
    cache.fetch({name: [f"open/{name}"] for name in HOSTILE})
    for i, name in enumerate(HOSTILE):
        assert cache.document(name, [f"open/{name}"]) == {"subject": name, "open": {name: {"n": i}}}
    assert DocumentCache("alerts", partial(newest_parts, empty, "alerts", 0)).document(HOSTILE[1])["subject"] == HOSTILE[1]


class Inserts:
    """Notes what a sink inserts."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.tokens: set[str] = set()

    def insert_rows(self, table: str, rows: list[dict[str, Any]], fence: str = "", token: str = "") -> int:
        self.sizes.append(sum(len(row["body"]) + len(row["head"]) + sum(map(len, row["parts"].values())) for row in rows))
        self.tokens.add(token)
        return len(rows)


def test_what_is_too_large_for_one_insert_is_several_each_with_its_token(empty: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    inserts = Inserts()
    monkeypatch.setattr(HistorySink, "__init__", lambda self: None)
    sink: Any = HistorySink()  # type: ignore[call-arg]
    sink.topic, sink._clickhouse, sink._ensure_member, sink._folds = "bills", inserts, lambda: None, {}
    rows = [{"body": "x" * size, "head": "", "parts": {"a/b": "y" * 10}} for size in (7 << 20, 9 << 20, 20 << 20, 1, 2)]
    batch: Any = type("Batch", (), {"dead": [], "rows": rows, "fences": {0: "f"}, "token": ["0:0-4@5"], "changed": []})
    sink.write(batch)
    assert (len(inserts.sizes), len(inserts.tokens), sum(inserts.sizes)) == (4, 4, sum(len(r["body"]) + 10 for r in rows))
    assert max(inserts.sizes) <= max(INSERT_BYTES_MAX, (20 << 20) + 10)


def test_what_several_chunks_of_a_partition_changed_is_released_when_it_is_written(
    empty: ClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker would keep it for ever."""
    monkeypatch.setattr(HistorySink, "__init__", lambda self: None)
    sink: Any = HistorySink()  # type: ignore[call-arg]
    log = Log("alerts", load=partial(newest_parts, empty, "alerts", 0))
    sink.topic, sink._clickhouse, sink._ensure_member, sink._watch = "alerts", empty, lambda: None, lambda *of: None
    sink._folds, sink._fences = {0: log.fold}, {0: "f:1"}
    about = {"severity": "critical", "message": "m", "remedy": "r", "rule": "stuck"}
    facts = [("AlertRaised", {**base(n), **about, "subject": f"s{n}"}) for n in range(3)]
    chunks = [Chunk("alerts", 0, [replace(log.make(fact), offset=n)]) for n, fact in enumerate(facts)]
    batch = sink.prepare(chunks)
    assert len(log.documents._unwritten) == 3
    sink.write(batch)
    assert not log.documents._unwritten and empty.value("SELECT count() FROM history_rows") == 3


def lifecycle_of(chance: random.Random) -> list[tuple[str, str, dict[str, Any]]]:
    """(topic, fact, body) of some models, in the order in which they happened; each a second after the one before."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    waiting = [_steps(f"model-vision-demo-m{n:02}", chance) for n in range(MODELS)]
    while waiting:
        steps = chance.choice(waiting)
        topic, fact, body = steps.pop(0)
        known = {k: v for k, v in {**body, "tenant": "acme"}.items() if k in FACTS[fact].cls.model_fields}
        found.append((topic, fact, {**known, **base(len(found)), "occurred_at": (len(found) + 1) * 1_000_000}))
        waiting = [w for w in waiting if w]
    return found


def _steps(model: str, chance: random.Random) -> list[tuple[str, str, dict[str, Any]]]:
    who = {"model": model, "version": 1}
    names = dict.fromkeys(("domain", "team", "name", "scenario", "task", "owner", "description"), "x")
    compliance = {"licence": "MIT", "data_sources": ["uci"], "data_level": "public"}
    steps = [("models", "ModelRegistered", {**who, **names, "tenant": "acme", "tags": ["a", model[-1]], "compliance": compliance})]
    for number in range(VERSIONS):
        version = {**who, "model_version": f"1.{number}.0"}
        added = {"technical": TECHNICAL, "artifact": f"sha256:{number:064}", "artifact_bytes": 1, "release_notes": "", "lineage": {}}
        steps += [
            ("models", "ModelVersionAdded", {**version, **added, "tenant": "acme", "by": "u"}),
            ("models", "ModelVersionSubmitted", {**version, "by": "u"}),
            ("models", "ModelVersionReviewed", {**version, "review": "business", "verdict": "approved", "by": "b", "comment": ""}),
            ("models", "ModelVersionReviewed", {**version, "review": "security", "verdict": "approved", "by": "s", "comment": ""}),
            ("models", "ModelVersionApproved", {**version, "business_by": "b", "security_by": "s"}),
            ("deployments", *_loaded(who, number)),
            ("deployments", "VersionReady", {"model": model, "model_version": f"1.{number}.0", "replicas": 1}),
            *([("deployments", "RolloutPromoted", _loaded(who, number)[1])] if number else []),
        ]
    steps = steps[: chance.randrange(1, len(steps) + 20)]
    if chance.random() < 0.3:
        steps.append(("models", "ModelRetired", {**who, "reason": "old", "successor": "", "by": "u"}))
    return steps


def _loaded(who: dict[str, Any], number: int) -> tuple[str, dict[str, Any]]:
    more = {**who, "artifact": "sha256:" + "0" * 64, "spec": ServiceSpec().model_dump(), "by": "u"}
    if number == 0:
        return "VersionDeployed", {**more, "tenant": "acme", "model_version": "1.0.0"}
    return "RolloutStarted", {**more, "from_version": f"1.{number - 1}.0", "to_version": f"1.{number}.0", "weight_percent": 20}


def test_a_history_of_other_columns_is_made_anew_and_one_of_these_is_kept(empty: ClickHouse, settings: Settings) -> None:
    columns = "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'history_rows'"
    write(empty, Chained("accounts").rows)
    known = empty.rows(columns)
    apply_tables(settings)
    assert (empty.value("SELECT count() FROM history_rows"), empty.rows(columns)) == (1, known)
    empty.command("ALTER TABLE history_rows ADD COLUMN state String")
    apply_tables(settings)
    assert (empty.value("SELECT count() FROM history_rows"), empty.rows(columns)) == (0, known)


def test_the_catalog_at_every_instant_is_that_of_whole_documents(empty: ClickHouse) -> None:
    logs = {topic: Chained(topic) for topic in ("models", "deployments")}
    whole: dict[str, dict[str, dict[str, Any]]] = {"models": {}, "deployments": {}}
    asked: dict[str, int] = {}
    at: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for topic, fact, body in lifecycle_of(random.Random(4)):
        log = logs[topic]
        if fact == "VersionReady":
            body["position"] = asked[body["model"]]
        name, decoded = CODEC.decode(CODEC.encode_dict(fact, body))
        if fact == "VersionReady":
            log.rows += log.put((fact, body))
        else:
            log.add((fact, body))
            if fact in ("VersionDeployed", "RolloutStarted"):
                asked[body["model"]] = log.position
        key = str(body["model"])
        whole[topic][key] = evolve(topic, whole[topic].get(key, {}), name, decoded, log.position)
        at[body["occurred_at"]] = dict(whole["models"]), dict(whole["deployments"])
    for log in logs.values():
        write(empty, log.rows)
        write(empty, random.Random(1).sample(log.rows, len(log.rows) // 3))  # a paused worker wrote them again (K8)
    catalog = Catalog(empty)
    for instant in [*random.Random(2).sample(sorted(at), 12), max(at)]:
        models, deployments = at[instant]
        page, after = catalog.page(Wanted(as_of=instant, limit=7))
        rest, end = catalog.page(Wanted(as_of=instant, limit=200, after=after)) if after else ([], "")
        shown = {m["model"]: m for m in page + rest}
        assert list(shown) == sorted(models) and end == ""
        for key, document in models.items():
            now = shown[key]
            assert {n: v for n, v in document.items() if n != "versions"}.items() <= now.items()
            described = {v: {n: c for n, c in version.items() if n != "deployment"} for v, version in now["versions"].items()}
            assert described == document["versions"]
            deployed = {v: version["deployment"] for v, version in now["versions"].items() if version["deployment"]}
            assert deployed == deployments.get(key, {}).get("versions", {})
            assert now["changed_at"] <= instant
        assert [m["model"] for m in catalog.page(Wanted(as_of=instant, tag="3"))[0]] == [k for k in sorted(models) if k.endswith("3")]
    assert catalog.page(Wanted(as_of=0)) == catalog.page(Wanted(tenant="nobody")) == catalog.page(Wanted(text="no such word")) == ([], "")
    everything = [m["model"] for m in catalog.page(Wanted())[0]]
    assert everything == [m["model"] for m in catalog.page(Wanted(tenant="acme", domain="x", task="x", scenario="x", text="VISION"))[0]]
    assert everything == sorted(whole["models"])
    working = [key for key, document in sorted(whole["models"].items()) if not document["retired"]]
    assert 0 < len(working) < len(everything)
    assert [m["model"] for m in catalog.page(Wanted(retired=False))[0]] == working
    versions = {r["model"]: r["versions"] for r in empty.rows("SELECT model, versions FROM catalog")}
    assert versions == {key: sorted(document["versions"]) for key, document in whole["models"].items()}
    for topic, log in logs.items():  # what a restart reads is what was in memory
        for key, document in whole[topic].items():
            stored = newest_parts(empty, topic, 0, [key], None)[key]
            assert stored == split(topic, json.loads(json.dumps(document)))
            assert log.documents.document(key) == document
