"""A document in parts: its head, and a part for each member of its collections. A row of the history holds those that its fact changed.

So a key of a tenant costs what it says, whatever other keys the tenant has; a document is put together where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping

from projections.catalog.document import Body, Document

COLLECTIONS: Mapping[str, tuple[str, ...]] = {
    "models": ("versions",),
    "deployments": ("versions", "routes"),
    "accounts": ("keys",),
    "prices": ("versions",),
    "producers": ("epochs",),
    "alerts": ("open",),
}
"""topic → the members of its documents that grow. Documents of other topics are all head."""
_NAMED_BY = {"models": "model_version", "accounts": "key_id", "prices": "book_version", "producers": "epoch", "alerts": "rule"}
"""topic → the field of a fact that names the only part it looks at and may change. A fact of `deployments` may change them all."""

HEAD = ""
Parts = dict[str, Document]
"""Name → part: the head is `HEAD`, a member of a collection `<collection>/<member>`."""


def looked_at(topic: str, body: Body) -> tuple[str, ...] | None:
    """Names of the parts, besides the head, that a fact needs and may change; None for all of its document."""
    if topic == "deployments":
        return None
    field = _NAMED_BY.get(topic)
    return () if field is None or field not in body else (f"{COLLECTIONS[topic][0]}/{body[field]}",)


def split(topic: str, document: Document) -> Parts:
    collections = COLLECTIONS.get(topic, ())
    parts: Parts = {HEAD: {name: value for name, value in document.items() if name not in collections}}
    for collection in collections:
        parts |= {f"{collection}/{member}": part for member, part in document.get(collection, {}).items()}
    return parts


def join(topic: str, parts: Mapping[str, Document]) -> Document:
    """The reverse of `split`; a document that says nothing stays empty."""
    document = dict(parts.get(HEAD, {}))
    if not document and not parts:
        return document
    for collection in COLLECTIONS.get(topic, ()):
        document[collection] = {}
    for name, part in parts.items():
        collection, _, member = name.partition("/")
        if name != HEAD:
            document[collection][member] = part
    return document


def changes(topic: str, before: Document, after: Document) -> dict[str, Document | None]:
    """The parts that are not as before; None for one that is gone."""
    if after is before:
        return {}
    old, new = split(topic, before), split(topic, after)
    gone = dict.fromkeys(old.keys() - new.keys())
    return {name: part for name, part in new.items() if old.get(name) != part} | gone
