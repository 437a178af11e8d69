"""What the key of a topic (a model, a tenant, a price book, a producer, an alert's subject …) looks like after a fact: the whole document, folded purely.

A document is plain JSON: instants are µs UTC, hashes hex. `evolve` never changes the document it is given.
"""

from __future__ import annotations

from collections.abc import Callable

from events.facts.accounts import KEY_DIMENSIONS, ResourceQuota
from lifecycle.deployment import DeploymentFact
from lifecycle.facts import fact_of
from lifecycle.model import ModelFact
from lifecycle.status import ObservedFact
from projections.catalog.document import Body, Document, pick, plain, put
from projections.catalog.lifecycle_documents import deployment_after, model_after

Evolve = Callable[[Document, Body], Document]


class Misplaced(Exception):
    """This fact is not one that its topic carries: no process of ours wrote it there."""


def evolve(topic: str, document: Document, fact: str, body: Body, position: int) -> Document:
    """The document of the fact's key after it. `position` is that of a decided fact in its store. Raises Misplaced for a fact that the
    topic does not carry."""
    known = fact_of(fact, body)
    if topic == "models" and isinstance(known, ModelFact):
        return model_after(document, known, body, position)
    if topic == "deployments" and isinstance(known, DeploymentFact | ObservedFact):
        return deployment_after(document, known, body, position)
    step = STEPS.get(topic, {}).get(fact)
    if step is None:
        raise Misplaced(f"{fact} does not belong on {topic}")
    return step(document, body)


# --- accounts: a tenant and its keys, hashes only


def _tenant_created(_: Document, b: Body) -> Document:
    return {**pick(b, "tenant", "display_name", "price_book", "currency", "timezone", "by"), "created_at": b["occurred_at"], "keys": {}}


def _key_issued(d: Document, b: Body) -> Document:
    names = ("key_id", "key_sha256", "user", "scopes", *KEY_DIMENSIONS, "labels", "expires_at", "by")
    return put(d, "keys", b["key_id"], **pick(b, *names), issued_at=b["occurred_at"], revoked_at=None)


def _key_revoked(d: Document, b: Body) -> Document:
    return put(d, "keys", b["key_id"], revoked_at=b["occurred_at"], revoked_because=b["reason"])


def _quota_set(d: Document, b: Body) -> Document:
    return put(d, quota={**pick(b, *ResourceQuota.model_fields, "reason", "by"), "at": b["occurred_at"]})


# --- prices and bills


def _published(d: Document, b: Body) -> Document:
    added = {**pick(b, "book_version", "currency", "effective_from", "prices", "by"), "published_at": b["occurred_at"]}
    return put(put(d, book=b["book"], currency=b["currency"]), "versions", str(b["book_version"]), **added)


def _cut_fixed(d: Document, b: Body) -> Document:
    return put(d, tenant=b["tenant"], cut=pick(b, "number", "period", "event_id", "until", "cuts", "decided_position"))


def _lines_listed(d: Document, _: Body) -> Document:
    return d  # the lines are in the fact, and its bill's head counts them


def _issued(d: Document, b: Body) -> Document:
    added = {
        **pick(b, "number", "period", "digest", "currency", "total_micros"),
        "issued_at": b["occurred_at"],
        "lines": b["lines_before"] + len(b["lines"]),
    }
    return put(d, tenant=b["tenant"], issued=added)


def _write_off_requested(d: Document, b: Body) -> Document:
    return put(d, **_record(b), state="requested", requested_by=b["requested_by"], requested_at=b["occurred_at"])


def _record_written_off(d: Document, b: Body) -> Document:
    """`written_off`: every hash that was written off at this coordinate."""
    hashes = [*d.get("written_off", []), plain(b["sha256"])]
    more = pick(b, "requested_by", "approver")
    return put(d, **_record(b), **more, state="written_off", approved_at=b["occurred_at"], written_off=hashes)


def _record(b: Body) -> Document:
    return pick(b, "record", "topic", "partition", "offset", "sha256", "reason")


def _set_requested(d: Document, b: Body) -> Document:
    """Without the records: they are in the fact, which `history` keeps."""
    added = pick(b, "record_set", "decision", "topic", "selection", "reason", "requested_by")
    return put(d, **added, records_count=len(b["records"]), state="requested", requested_at=b["occurred_at"])


def _set_decided(d: Document, b: Body) -> Document:
    return put(d, **pick(b, "approver"), state="decided", approved_at=b["occurred_at"])


# --- producers: the lifecycle of each epoch


def _opened(d: Document, b: Body) -> Document:
    return put(put(d, producer=b["producer"]), "epochs", b["epoch"], **pick(b, "host", "region"), status="open", opened_at=b["occurred_at"])


def _closed(d: Document, b: Body) -> Document:
    return put(d, "epochs", b["epoch"], **pick(b, "last", "closed_by"), status="closed", closed_at=b["occurred_at"])


def _epoch_write_off_requested(d: Document, b: Body) -> Document:
    return put(d, "epochs", b["epoch"], **pick(b, "reason", "requested_by"), requested_at=b["occurred_at"])


def _epoch_written_off(d: Document, b: Body) -> Document:
    more = pick(b, "reason", "requested_by", "approver")
    return put(d, "epochs", b["epoch"], **more, status="written_off", closed_at=b["occurred_at"])


# --- alerts: what is wrong with a subject now, by rule, and what was last put right


def _raised(d: Document, b: Body) -> Document:
    added = {**pick(b, "event_id", "producer", "severity", "message", "remedy"), "raised_at": b["occurred_at"]}
    return put(d, subject=b["subject"], open={**d.get("open", {}), b["rule"]: added})


def _resolved(d: Document, b: Body) -> Document:
    """Only the alert that the fact names: one that was raised anew in between is open still."""
    still = dict(d.get("open", {}))
    if still.get(b["rule"], {}).get("event_id") != b["raised"]:
        return d
    over = {**still.pop(b["rule"]), "rule": b["rule"], "resolved_at": b["occurred_at"]}
    return put(d, open=still, resolved_last=over)


# --- schemas: the log itself, and how to read each id


def _log_created(_: Document, b: Body) -> Document:
    return {**pick(b, "log_id", "partitioner", "partitions"), "created_at": b["occurred_at"]}


def _schema_registered(d: Document, b: Body) -> Document:
    """One text has one id, whatever subjects it serves."""
    subjects = {**d.get("subjects", {}), b["subject"]: b["occurred_at"]}
    return put(d, **pick(b, "schema_id", "sha256", "definition"), subjects=subjects)


STEPS: dict[str, dict[str, Evolve]] = {
    "accounts": {
        "TenantCreated": _tenant_created,
        "ApiKeyIssued": _key_issued,
        "ApiKeyRevoked": _key_revoked,
        "TenantQuotaSet": _quota_set,
    },
    "prices": {"PriceBookPublished": _published},
    "bills": {
        "BillCutFixed": _cut_fixed,
        "BillLinesListed": _lines_listed,
        "BillIssued": _issued,
        "RecordWriteOffRequested": _write_off_requested,
        "RecordWrittenOff": _record_written_off,
        "RecordSetDecisionRequested": _set_requested,
        "RecordSetDecided": _set_decided,
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
"""topic → fact → step, beside the facts of the lifecycle. `tests/unit/projections/test_catalog.py` fails when a fact is missing here."""
