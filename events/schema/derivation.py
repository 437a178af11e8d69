"""The Avro schema of a fact class, generated so that class and schema cannot drift apart.

Closed sets of values are Avro strings, not enums: an older reader must accept a newer value. `None` comes first in a
union, so its default is null. Source: Apache Avro 1.12 specification.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from typing import Any, Literal, NewType, Union, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

NAMESPACE = "modelmarket"

Schema = str | dict[str, Any] | list[Any]

_PRIMITIVES: dict[object, Schema] = {str: "string", int: "long", bool: "boolean", bytes: "bytes"}
_MARKS: dict[str, Schema] = {
    "timestamp-micros": {"type": "long", "logicalType": "timestamp-micros"},
    "uuid": {"type": "string", "logicalType": "uuid"},
}


def schema_of(cls: type[BaseModel]) -> dict[str, Any]:
    """The Avro record of a fact class; nested records are defined where first used."""
    return _record(cls, set())


def canonical(schema: dict[str, Any]) -> str:
    """The one text of a schema: what is registered, hashed and recorded in the log."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


def _record(cls: type[BaseModel], seen: set[str]) -> dict[str, Any]:
    outermost = not seen
    seen.add(cls.__name__)
    fields: list[dict[str, Any]] = []
    for name, info in cls.model_fields.items():
        field: dict[str, Any] = {"name": name, "type": _type(_annotated(info), seen)}
        if info.default is not PydanticUndefined:
            field["default"] = _default(info.default)
        fields.append(field)
    # Nested records inherit the namespace: registries take a repeated one away, and then text and text would differ.
    space = {"namespace": NAMESPACE} if outermost else {}
    return {"type": "record", "name": cls.__name__, **space, "doc": " ".join((inspect.getdoc(cls) or "").split()), "fields": fields}


def _annotated(info: FieldInfo) -> Any:
    """pydantic keeps the marks of Annotated[T, mark] beside T: put them together again."""
    marks = [m for m in info.metadata if isinstance(m, str)]
    return typing.Annotated[info.annotation, *marks] if marks else info.annotation  # type: ignore[valid-type]


def _type(annotation: Any, seen: set[str]) -> Schema:
    if isinstance(annotation, NewType):
        return _type(annotation.__supertype__, seen)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _marked(args, seen)
    if annotation in _PRIMITIVES:
        return _PRIMITIVES[annotation]
    if origin is Literal:
        return "string"
    if origin in (Union, types.UnionType):
        others = [a for a in args if a is not type(None)]
        if len(others) != 1 or len(args) != 2:
            raise TypeError(f"only T | None is a union on the wire, not {annotation}")
        return ["null", _type(others[0], seen)]
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return {"type": "array", "items": _type(args[0], seen)}
    if origin is dict and _type(args[0], seen) == "string":
        return {"type": "map", "values": _type(args[1], seen)}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__ if annotation.__name__ in seen else _record(annotation, seen)
    raise TypeError(f"{annotation} has no Avro type here")


def _marked(args: tuple[Any, ...], seen: set[str]) -> Schema:
    for mark in args[1:]:
        if isinstance(mark, str) and mark in _MARKS:
            return _MARKS[mark]
        if isinstance(mark, str) and mark.startswith("fixed"):
            name = f"Fixed{mark.removeprefix('fixed')}"
            if name in seen:
                return name
            seen.add(name)
            return {"type": "fixed", "name": name, "size": int(mark.removeprefix("fixed"))}
    return _type(args[0], seen)


def _default(value: object) -> object:
    """A default as JSON. Avro writes bytes as a string of code points 0–255."""
    match value:
        case bytes():
            return value.decode("latin-1")
        case tuple():
            return [_default(v) for v in cast(tuple[object, ...], value)]
        case BaseModel():
            return {k: _default(getattr(value, k)) for k in type(value).model_fields}
        case _:
            return value
