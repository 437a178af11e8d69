"""The catalog at any instant: which models there are, which versions, how far their reviews and deployments have come.

A filter on the history, not a feature: the newest document of each key that was valid then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from projections.catalog.document import Document
from projections.catalog.parts import join
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


# Names and comparisons are ours; every value travels as a parameter. Only a model's head is filtered: few rows have one, and all else is
# read for the models of one page alone; rows lie in the order of their keys, so reading ends with the page. Doubled rows (K8) change nothing.
_HEADS = """
SELECT key FROM (
    SELECT key, head AS newest FROM history_rows
    WHERE topic = 'models' AND head != '' AND valid_from_us <= {as_of:Int64} AND key > {after:String}
      AND tenant != '' AND ({tenant:String} = '' OR tenant = {tenant:String})
    ORDER BY key, step DESC LIMIT 1 BY key
)
WHERE ({domain:String} = '' OR JSONExtractString(newest, 'domain') = {domain:String})
  AND ({task:String} = '' OR JSONExtractString(newest, 'task') = {task:String})
  AND ({scenario:String} = '' OR JSONExtractString(newest, 'scenario') = {scenario:String})
  AND ({tag:String} = '' OR has(JSONExtract(newest, 'tags', 'Array(String)'), {tag:String}))
  AND ({retired:Bool} OR JSONType(newest, 'retired') != 'Object')
  AND ({text:String} = '' OR positionCaseInsensitiveUTF8(concat(key, ' ', JSONExtractString(newest, 'description'), ' ',
      JSONExtractString(newest, 'scenario'), ' ', arrayStringConcat(JSONExtract(newest, 'tags', 'Array(String)'), ' ')), {text:String}) > 0)
ORDER BY key LIMIT {limit:Int32}
"""
_PARTS = """
SELECT topic, key, groupArrayIf((part, newest), newest != '') AS parts, argMax(at, latest) AS position, max(changed_us) AS changed_at
FROM (
    SELECT topic, key, part, argMaxIf(state, step, part != '' OR state != '') AS newest, max(step) AS latest,
        argMax(position, step) AS at, max(valid_from_us) AS changed_us
    FROM (
        SELECT topic, key, step, position, valid_from_us,
            arrayJoin(arrayConcat([('', head)], arrayZip(mapKeys(parts), mapValues(parts)))) AS change, change.1 AS part, change.2 AS state
        FROM history_rows
        WHERE topic IN ('models', 'deployments') AND key IN {keys:Array(String)} AND valid_from_us <= {as_of:Int64}
    )
    GROUP BY topic, key, part ORDER BY latest
)
GROUP BY topic, key
"""
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
        params: dict[str, object] = {
            "as_of": wanted.as_of,
            "after": wanted.after,
            "domain": wanted.domain,
            "task": wanted.task,
            "scenario": wanted.scenario,
            "tenant": wanted.tenant,
            "tag": wanted.tag,
            "retired": wanted.retired,
            "text": wanted.text,
            "limit": limit + 1,
        }
        keys = [str(r["key"]) for r in self._clickhouse.rows(_HEADS, params, _BOUNDS)]
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
        params: dict[str, object] = {"keys": keys, "as_of": as_of}
        found = {(row["topic"], row["key"]): row for row in self._clickhouse.rows(_PARTS, params, _BOUNDS)}
        parts = {at: {str(name): orjson.loads(state) for name, state in row["parts"]} for at, row in found.items()}
        models: dict[str, Model] = {}
        for key in keys:
            document = join("models", parts.get(("models", key), {}))
            if "tenant" in document:  # facts of a name that was never registered leave a document too
                models[key] = _model(document, join("deployments", parts.get(("deployments", key), {})), found["models", key])
        return models


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
