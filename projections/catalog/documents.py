"""What the key of a topic (a model, a tenant, a price book, a producer, an alert's subject …) looks like after a fact: the whole document, folded purely.

A document is plain JSON: instants are µs UTC, hashes hex. `evolve` never changes the document it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from events.facts.accounts import KEY_DIMENSIONS

Document = dict[str, Any]
Body = Mapping[str, Any]
Evolve = Callable[[Document, Body], Document]


class Misplaced(Exception):
    """This fact is not one that its topic carries: nobody of ours wrote it there."""


def evolve(topic: str, document: Document, fact: str, body: Body) -> Document:
    """The document of the fact's key after it. Raises Misplaced for a fact the topic does not carry."""
    step = STEPS.get(topic, {}).get(fact)
    if step is None:
        raise Misplaced(f"{fact} does not belong on {topic}")
    return step(document, body)


def plain(value: Any) -> Any:
    """A decoded body as JSON can hold it: bytes become hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _with(document: Document, *path: str, **changes: Any) -> Document:
    """A copy in which the object at `path` (made where missing) has these members."""
    if not path:
        return {**document, **changes}
    first, *rest = path
    return {**document, first: _with(document.get(first) or {}, *rest, **changes)}


def _pick(body: Body, *names: str) -> Document:
    return {name: plain(body[name]) for name in names}


# --- models: basic data, versions with their reviews, retirement


def _registered(_: Document, b: Body) -> Document:
    names = ("model", "tenant", "domain", "team", "name", "scenario", "task", "owner", "description", "tags", "compliance")
    return {**_pick(b, *names), "registered_at": b["occurred_at"], "versions": {}, "retired": None}


def _version_added(d: Document, b: Body) -> Document:
    more = _pick(b, "model_version", "technical", "artifact", "artifact_bytes", "release_notes", "lineage", "by")
    return _with(d, "versions", b["model_version"], **more, status="draft", added_at=b["occurred_at"], reviews={})


def _submitted(d: Document, b: Body) -> Document:
    return _with(
        d, "versions", b["model_version"], status="pending_review", submitted_at=b["occurred_at"], submitted_by=b["by"], reviews={}
    )


def _reviewed(d: Document, b: Body) -> Document:
    said = {**_pick(b, "verdict", "by", "comment"), "at": b["occurred_at"]}
    d = _with(d, "versions", b["model_version"], "reviews", **{b["review"]: said})
    return d if b["verdict"] == "approved" else _with(d, "versions", b["model_version"], status="draft")


def _approved(d: Document, b: Body) -> Document:
    return _with(
        d, "versions", b["model_version"], status="approved", approved_at=b["occurred_at"], **_pick(b, "business_by", "security_by")
    )


def _retired(d: Document, b: Body) -> Document:
    return _with(d, retired={**_pick(b, "reason", "successor", "by"), "at": b["occurred_at"]})


# --- deployments: which versions run, how far each is, who takes which share of the calls


def _loads(d: Document, b: Body, version: str) -> Document:
    """A version is asked for: whatever was seen of it before is over."""
    more = {**_pick(b, "artifact", "spec", "by"), "status": "loading", "requested_at": b["occurred_at"], "replicas": 0, "error": ""}
    return _with(_with(d, model=b["model"]), "versions", version, **more)


def _deployed(d: Document, b: Body) -> Document:
    version = b["model_version"]
    return _with(_loads(d, b, version), tenant=b["tenant"], live=version, candidate="", weights={version: 100})


def _rollout_started(d: Document, b: Body) -> Document:
    d = _with(_loads(d, b, b["to_version"]), candidate=b["to_version"])
    return _shared(d, b["from_version"], b["to_version"], b["weight_percent"])


def _rollout_advanced(d: Document, b: Body) -> Document:
    return _shared(d, d.get("live", ""), b["to_version"], b["weight_percent"])


def _shared(d: Document, live: str, candidate: str, percent: int) -> Document:
    return _with(d, weights={live: 100 - percent, candidate: percent} if live else {candidate: percent})


def _promoted(d: Document, b: Body) -> Document:
    return _with(d, live=b["to_version"], candidate="", weights={b["to_version"]: 100})


def _rolled_back(d: Document, b: Body) -> Document:
    last = {**_pick(b, "from_version", "to_version", "reason", "by"), "at": b["occurred_at"]}
    return _with(d, live=b["to_version"], candidate="", weights={b["to_version"]: 100}, rolled_back=last)


def _undeployed(d: Document, b: Body) -> Document:
    version = b["model_version"]
    d = _with(d, "versions", version, status="undeployed", replicas=0, undeployed_at=b["occurred_at"], reason=b["reason"])
    weights = {v: w for v, w in d.get("weights", {}).items() if v != version}
    gone = {name: "" for name in ("live", "candidate") if d.get(name) == version}
    return _with(d, weights=weights, **gone)


def _ready(d: Document, b: Body) -> Document:
    return _with(d, "versions", b["model_version"], status="ready", ready_at=b["occurred_at"], error="", **_pick(b, "replicas", "load_us"))


def _failed(d: Document, b: Body) -> Document:
    return _with(d, "versions", b["model_version"], status="failed", failed_at=b["occurred_at"], error=f"{b['error_code']}: {b['message']}")


ROUTES_KEPT = 64
"""Gateways told apart in a deployment's document. Each start of one has a name of its own, so those heard last are kept."""


def _route_applied(d: Document, b: Body) -> Document:
    routes = dict(d.get("routes", {}))
    routes.pop(b["gateway"], None)
    while len(routes) >= ROUTES_KEPT:
        del routes[next(iter(routes))]
    routes[b["gateway"]] = {**_pick(b, "epoch", "position", "weights"), "at": b["occurred_at"]}
    return _with(d, routes=routes)


# --- accounts: a tenant and its keys, hashes only


def _tenant_created(_: Document, b: Body) -> Document:
    return {**_pick(b, "tenant", "display_name", "price_book", "currency", "timezone", "by"), "created_at": b["occurred_at"], "keys": {}}


def _key_issued(d: Document, b: Body) -> Document:
    names = ("key_id", "key_sha256", "user", "scopes", *KEY_DIMENSIONS, "labels", "expires_at", "by")
    return _with(d, "keys", b["key_id"], **_pick(b, *names), issued_at=b["occurred_at"], revoked_at=None)


def _key_revoked(d: Document, b: Body) -> Document:
    return _with(d, "keys", b["key_id"], revoked_at=b["occurred_at"], revoked_because=b["reason"])


# --- prices and bills


def _published(d: Document, b: Body) -> Document:
    said = {**_pick(b, "book_version", "currency", "effective_from", "prices", "by"), "published_at": b["occurred_at"]}
    return _with(_with(d, book=b["book"], currency=b["currency"]), "versions", str(b["book_version"]), **said)


def _cut_fixed(d: Document, b: Body) -> Document:
    return _with(d, tenant=b["tenant"], cut=_pick(b, "number", "period", "event_id", "until", "cuts", "decided_position"))


def _lines_listed(d: Document, _: Body) -> Document:
    return d  # the lines are in the fact, and its bill's head counts them


def _issued(d: Document, b: Body) -> Document:
    said = {
        **_pick(b, "number", "period", "digest", "currency", "total_micros"),
        "issued_at": b["occurred_at"],
        "lines": b["lines_before"] + len(b["lines"]),
    }
    return _with(d, tenant=b["tenant"], issued=said)


def _write_off_requested(d: Document, b: Body) -> Document:
    return _with(d, **_record(b), state="requested", requested_by=b["requested_by"], requested_at=b["occurred_at"])


def _record_written_off(d: Document, b: Body) -> Document:
    """`written_off`: every hash that was given up at this coordinate."""
    hashes = [*d.get("written_off", []), plain(b["sha256"])]
    more = _pick(b, "requested_by", "approver")
    return _with(d, **_record(b), **more, state="written_off", approved_at=b["occurred_at"], written_off=hashes)


def _record(b: Body) -> Document:
    return _pick(b, "record", "topic", "partition", "offset", "sha256", "reason")


# --- producers: the life of each epoch


def _opened(d: Document, b: Body) -> Document:
    return _with(
        _with(d, producer=b["producer"]), "epochs", b["epoch"], **_pick(b, "host", "region"), status="open", opened_at=b["occurred_at"]
    )


def _closed(d: Document, b: Body) -> Document:
    return _with(d, "epochs", b["epoch"], **_pick(b, "last", "closed_by"), status="closed", closed_at=b["occurred_at"])


def _epoch_write_off_requested(d: Document, b: Body) -> Document:
    return _with(d, "epochs", b["epoch"], **_pick(b, "reason", "requested_by"), requested_at=b["occurred_at"])


def _epoch_written_off(d: Document, b: Body) -> Document:
    more = _pick(b, "reason", "requested_by", "approver")
    return _with(d, "epochs", b["epoch"], **more, status="written_off", closed_at=b["occurred_at"])


# --- alerts: what is wrong with a subject now, by rule, and what was last put right


def _raised(d: Document, b: Body) -> Document:
    said = {**_pick(b, "event_id", "producer", "severity", "message", "remedy"), "raised_at": b["occurred_at"]}
    return _with(d, subject=b["subject"], open={**d.get("open", {}), b["rule"]: said})


def _resolved(d: Document, b: Body) -> Document:
    """Only the alert that the fact names: one that was raised anew in between is open still."""
    still = dict(d.get("open", {}))
    if still.get(b["rule"], {}).get("event_id") != b["raised"]:
        return d
    over = {**still.pop(b["rule"]), "rule": b["rule"], "resolved_at": b["occurred_at"]}
    return _with(d, open=still, resolved_last=over)


# --- schemas: the log itself, and how to read each id


def _log_created(_: Document, b: Body) -> Document:
    return {**_pick(b, "log_id", "partitioner", "partitions"), "created_at": b["occurred_at"]}


def _schema_registered(d: Document, b: Body) -> Document:
    """One text has one id, whatever subjects it serves."""
    subjects = {**d.get("subjects", {}), b["subject"]: b["occurred_at"]}
    return _with(d, **_pick(b, "schema_id", "sha256", "definition"), subjects=subjects)


STEPS: dict[str, dict[str, Evolve]] = {
    "models": {
        "ModelRegistered": _registered,
        "ModelVersionAdded": _version_added,
        "ModelVersionSubmitted": _submitted,
        "ModelVersionReviewed": _reviewed,
        "ModelVersionApproved": _approved,
        "ModelRetired": _retired,
    },
    "deployments": {
        "VersionDeployed": _deployed,
        "RolloutStarted": _rollout_started,
        "RolloutAdvanced": _rollout_advanced,
        "RolloutPromoted": _promoted,
        "RolledBack": _rolled_back,
        "VersionUndeployed": _undeployed,
        "VersionReady": _ready,
        "VersionFailed": _failed,
        "RouteApplied": _route_applied,
    },
    "accounts": {"TenantCreated": _tenant_created, "ApiKeyIssued": _key_issued, "ApiKeyRevoked": _key_revoked},
    "prices": {"PriceBookPublished": _published},
    "bills": {
        "BillCutFixed": _cut_fixed,
        "BillLinesListed": _lines_listed,
        "BillIssued": _issued,
        "RecordWriteOffRequested": _write_off_requested,
        "RecordWrittenOff": _record_written_off,
    },
    "producers": {
        "ProducerOpened": _opened,
        "ProducerClosed": _closed,
        "ProducerWriteOffRequested": _epoch_write_off_requested,
        "ProducerWrittenOff": _epoch_written_off,
    },
    "alerts": {"AlertRaised": _raised, "AlertResolved": _resolved},
    "schemas": {"LogCreated": _log_created, "SchemaRegistered": _schema_registered},
}
"""topic → fact → step. `tests/unit/projections/test_catalog.py` fails when the table of facts has one that is missing here."""
