"""Records as they were once written, kept for ever: today's code must still read each of them.

`schemas/<topic>/examples/<fact>.<n>.json` = {"schema": the writer's schema, "frame": hex of the framed record, "body": what it says}.
A change of a fact adds an example; none is ever edited or removed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from events.facts.fact import Fact
from events.facts.topics import FactEntry, entries
from events.schema import derivation as avro
from events.schema.codec import Codec, Schema, SchemaSet, Undecodable
from events.schema.folder import SCHEMA_FOLDER

EXAMPLE_SCHEMA_ID = 7


def undecodable_examples(folder: Path = SCHEMA_FOLDER) -> list[str]:
    """Each example that today's code does not read to the same body, and each fact without an example, as a sentence."""
    drift: list[str] = []
    covered: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("*/examples/*.json")):
        topic, name = path.parent.parent.name, path.name.split(".")[0]
        covered.add((topic, name))
        drift += [f"{topic}/examples/{path.name}: {why}" for why in _read(path, topic, name)]
    drift += [
        f"{e.topic}/{e.name} has no example; run `modelmarket schemas generate`" for e in entries() if (e.topic, e.name) not in covered
    ]
    return drift


def _read(path: Path, topic: str, name: str) -> list[str]:
    kept = json.loads(path.read_text())
    schemas = SchemaSet()
    schemas.by_id[EXAMPLE_SCHEMA_ID] = Schema.of(EXAMPLE_SCHEMA_ID, f"{topic}-{name}", json.dumps(kept["schema"]))
    try:
        found, body = Codec(schemas).decode(bytes.fromhex(kept["frame"]))
    except Undecodable as e:
        return [str(e)]
    entry = next((e for e in entries() if (e.topic, e.name) == (topic, found)), None)
    if entry is None:
        return [f"{found} is no fact of {topic} any more"]
    try:
        entry.cls.model_validate(body)
    except ValueError as e:
        return [f"today's class refuses it: {e}"]
    lost = [k for k, v in kept["body"].items() if jsonable(body.get(k)) != v]
    return [f"field {k} no longer says what it said" for k in lost]


def add_examples(folder: Path = SCHEMA_FOLDER) -> list[Path]:
    """Keeps one record of every schema that has none yet: called when schemas are generated."""
    added: list[Path] = []
    for entry in entries():
        examples = sorted((folder / entry.topic / "examples").glob(f"{entry.name}.*.json"))
        schema = avro.schema_of(entry.cls)
        if any(json.loads(p.read_text())["schema"] == schema for p in examples):
            continue
        path = folder / entry.topic / "examples" / f"{entry.name}.{len(examples) + 1}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fact = example_of(entry)
        schemas = SchemaSet()
        schemas.add(Schema.of(EXAMPLE_SCHEMA_ID, entry.subject, avro.canonical(schema)))
        frame = Codec(schemas).encode(fact, entry.topic)
        body = {k: jsonable(v) for k, v in fact.model_dump().items()}
        path.write_text(json.dumps({"schema": schema, "frame": frame.hex(), "body": body}, indent=1, ensure_ascii=False) + "\n")
        added.append(path)
    return added


def jsonable(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case list() | tuple():
            return [jsonable(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
        case dict():
            return {k: jsonable(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value


def example_of(entry: FactEntry) -> Fact:
    """A valid fact with something in every field, the same on every machine."""
    return entry.cls.model_validate(_filled(entry.cls))


def _filled(cls: type[BaseModel]) -> dict[str, Any]:
    return {name: _value(name, info.annotation, info) for name, info in cls.model_fields.items()}


_WORDS: dict[str, Any] = {
    "event_id": "5f3c1d1e-6f0a-4e57-9d57-3f8f0d1c2b3a",
    "occurred_at": 1_790_000_000_000_000,
    "effective_from": 1_790_000_000_000_000,
    "until": 1_790_000_000_000_000,
    "artifact": "sha256:" + "ab" * 32,
    "security_assessment": "sha256:" + "ef" * 32,
    "key_sha256": "cd" * 32,
    "period": "2026-11",
    "model": "model-vision-lab-digits",
    "model_version": "1.0.0",
    "tenant": "acme",
    "currency": "CNY",
    "price_book": "standard",
}


def _value(name: str, annotation: Any, info: FieldInfo | None = None) -> Any:
    if name in _WORDS:
        return _WORDS[name]
    annotation = getattr(annotation, "__supertype__", annotation)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return args[0]
    if origin is tuple:
        return (_value("", args[0]),)
    if origin is dict:
        return {"a": _value("", args[1])}
    if type(None) in args:
        return _value(name, next(a for a in args if a is not type(None)))
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _value(name, args[0], FieldInfo.from_annotation(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _filled(annotation)
    bounds = info.metadata if info else []
    low = max([int(b.ge) for b in bounds if isinstance(b, Ge)] + [int(b.gt) + 1 for b in bounds if isinstance(b, Gt)] + [1])  # type: ignore[arg-type]
    if annotation is bytes:
        length = max([b.min_length for b in bounds if isinstance(b, MinLen)] + [4]) if bounds else 4
        assert all(length <= b.max_length for b in bounds if isinstance(b, MaxLen))
        return bytes(range(length))
    return {str: name or "word", int: low, bool: True}[annotation]
