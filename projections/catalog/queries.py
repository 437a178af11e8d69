"""The catalog at any instant: which models there are, which versions, how far their reviews and deployments have come.

A filter on the history, not a feature: the newest document of each key that was valid then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from projections.catalog.document import Document
from projections.catalog.parts import HEAD, Parts, join
from projections.ingest.clickhouse import ClickHouse

PAGE_MAX = 200
"""Models a page: a document is a few kilobytes, an answer stays below a megabyte."""
HISTORY_MAX = 1000
END_OF_TIME = (1 << 62) - 1

Model = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Filters; an empty one does not filter. `as_of` in µs UTC; `after` is the last model of the page before."""

    as_of: int = END_OF_TIME
    text: str = ""
    domain: str = ""
    task: str = ""
    scenario: str = ""
    tag: str = ""
    tenant: str = ""
    retired: bool = True
    after: str = ""
    limit: int = 50


# Names and comparisons are ours; every value travels as a parameter. A question says only what is asked: two thirds of its time is the
# engine's planning. Only a model's head is filtered: few rows have one, and all else is read for the models of one page alone; rows lie in
# the order of their keys, so reading ends with the page. Doubled rows (K8) change nothing.
_ROWS = {"after": "key > {after:String}", "as_of": "valid_from_us <= {as_of:Int64}", "tenant": "tenant = {tenant:String}"}
"""Filter → what a row fulfils: nobody's model changes hands."""
_HEAD = {
    "domain": "JSONExtractString(newest, 'domain') = {domain:String}",
    "task": "JSONExtractString(newest, 'task') = {task:String}",
    "scenario": "JSONExtractString(newest, 'scenario') = {scenario:String}",
    "tag": "has(JSONExtract(newest, 'tags', 'Array(String)'), {tag:String})",
    "working": "JSONType(newest, 'retired') != 'Object'",
    "text": """positionCaseInsensitiveUTF8(concat(key, ' ', JSONExtractString(newest, 'description'), ' ',
        JSONExtractString(newest, 'scenario'), ' ', arrayStringConcat(JSONExtract(newest, 'tags', 'Array(String)'), ' ')), {text:String}) > 0""",
}
"""Filter → what the newest head fulfils."""
_PARTS = """
SELECT topic, key, argMaxIf(head, step, head != '') AS newest, maxMap(mapApply((part, state) -> (part, (step, state)), parts)) AS members,
    argMax(history_rows.position, step) AS position, max(valid_from_us) AS changed_at
FROM history_rows WHERE topic IN ('models', 'deployments') AND key IN {keys:Array(String)}"""


def _keys_sql(given: Mapping[str, object]) -> str:
    """The keys of the models that fulfil these filters, in their order."""
    rows = " AND ".join(["topic = 'models' AND head != '' AND tenant != ''", *(sql for name, sql in _ROWS.items() if name in given)])
    heads = " AND ".join(sql for name, sql in _HEAD.items() if name in given)
    if not heads:
        return f"SELECT DISTINCT key FROM history_rows WHERE {rows} ORDER BY key LIMIT {{limit:Int32}}"
    newest = f"SELECT key, head AS newest FROM history_rows WHERE {rows} ORDER BY key, step DESC LIMIT 1 BY key"
    return f"SELECT key FROM ({newest}) WHERE {heads} ORDER BY key LIMIT {{limit:Int32}}"


_BOUNDS = {
    "max_execution_time": 10,
    # The engine compiles an expression when it meets it the third time, and that question waits half a second.
    "compile_expressions": 0,
    "compile_aggregate_expressions": 0,
    "compile_sort_description": 0,
}
"""Of one question; seconds."""


class Catalog:
    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    def page(self, wanted: Wanted) -> tuple[list[Model], str]:
        """Models in the order of their names, and what to pass as `after` for the next page (empty at the end)."""
        limit = min(wanted.limit, PAGE_MAX)
        asked = {name: value for name, value in asdict(wanted).items() if name in _ROWS | _HEAD and value != ""}
        if wanted.as_of >= END_OF_TIME:
            del asked["as_of"]
        given: dict[str, object] = {**asked, **({} if wanted.retired else {"working": True}), "limit": limit + 1}
        keys = [str(row["key"]) for row in self._clickhouse.rows(_keys_sql(given), given, _BOUNDS)]
        more, keys = len(keys) > limit, keys[:limit]
        models = self._models(keys, wanted.as_of)
        return [models[key] for key in keys], keys[-1] if more else ""

    def model(self, model: str, as_of: int = END_OF_TIME) -> Model | None:
        """One model, or None when it was not registered then."""
        return self._models([model], as_of).get(model)

    def history(self, model: str, limit: int = HISTORY_MAX) -> list[dict[str, Any]]:
        """What happened to a model, newest first: each fact with where it stands on the log."""
        rows = self._clickhouse.rows(
            """SELECT topic, fact, kind, valid_from_us AS at, JSONExtractString(body, 'by') AS by, position, kafka_partition, kafka_offset, event_id, body
            FROM history WHERE topic IN ('models', 'deployments') AND key = {key:String} AND fact != 'RouteApplied'
            ORDER BY valid_from_us DESC, position DESC, step DESC LIMIT {limit:Int32}""",
            {"key": model, "limit": min(limit, HISTORY_MAX)},
            _BOUNDS,
        )
        return [{**row, "body": orjson.loads(row["body"])} for row in rows]

    def _models(self, keys: list[str], as_of: int) -> dict[str, Model]:
        """Those of them that were registered."""
        if not keys:
            return {}
        past = "" if as_of >= END_OF_TIME else f" AND {_ROWS['as_of']}"
        given: dict[str, object] = {"keys": keys, "as_of": as_of}
        rows = self._clickhouse.rows(f"{_PARTS}{past} GROUP BY topic, key", given, _BOUNDS)
        found = {(row["topic"], row["key"]): row for row in rows}
        parts = {at: _parts_of(row) for at, row in found.items()}
        models: dict[str, Model] = {}
        for key in keys:
            document = join("models", parts.get(("models", key), {}))
            if "tenant" in document:  # facts of a name that was never registered leave a document too
                models[key] = _model(document, join("deployments", parts.get(("deployments", key), {})), found["models", key])
        return models


def _parts_of(row: Mapping[str, Any]) -> Parts:
    members = {str(name): orjson.loads(state) for name, (_, state) in row["members"].items() if state}
    return {HEAD: orjson.loads(row["newest"]), **members} if row["newest"] else members


def _model(document: Document, deployment: Document, changed: Mapping[str, Any]) -> Model:
    """A model's document with what runs of it: per version `deployment`, and over all who is to take the calls and who takes them.
    `changed`: `position` and `changed_at`."""
    deployed: dict[str, Any] = deployment.get("versions", {})
    # A retirement and the unloading it brings are on two topics: the first alone ends the calls.
    traffic = {} if document["retired"] else deployment
    versions = {
        version: {**content, "deployment": deployed.get(version)}
        for version, content in sorted(document.get("versions", {}).items(), key=_release)
    }
    live = traffic.get("live", "")
    running = deployed.get(live, {}).get("status", "")
    status = "retired" if document["retired"] else running or "not_deployed"
    return {
        **document,
        "versions": versions,
        "live": live,
        "candidate": traffic.get("candidate", ""),
        "serving": traffic.get("serving", ""),
        "loading": traffic.get("loading", []),
        "weights": traffic.get("weights", {}),
        "status": status,
        "position": changed["position"],
        "changed_at": changed["changed_at"],
    }


_PUBLIC_VERSION = (
    "model_version",
    "technical",
    "artifact",
    "artifact_bytes",
    "release_notes",
    "lineage",
    "status",
    "added_at",
    "approved_at",
)
_PUBLIC_DEPLOYMENT = ("status", "replicas", "spec", "requested_at", "ready_at")


def public(model: Model) -> Model:
    """What other tenants see of a model: the approved versions, without their reviews and without the reasons why one did not load."""
    versions: dict[str, Any] = {}
    for version, content in model["versions"].items():
        if content["status"] == "approved":
            deployment: dict[str, Any] | None = content["deployment"]
            seen = {k: deployment[k] for k in _PUBLIC_DEPLOYMENT if k in deployment} if deployment else None
            versions[version] = {**{k: content[k] for k in _PUBLIC_VERSION if k in content}, "reviews": {}, "deployment": seen}
    return {**model, "versions": versions}


def _release(item: tuple[str, Any]) -> tuple[list[int], str]:
    """SemVer order as far as people read lists: the numbers, then the rest as text."""
    numbers, _, rest = item[0].partition("-")
    return [int(n) for n in numbers.split("+")[0].split(".") if n.isdigit()], rest
