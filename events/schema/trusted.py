"""Typed values from decoded ones, without validation: for folds, whose facts were validated when they were made (K5).

How a class is built is planned once, at its first use. A field that the value lacks takes the class's default, since a writer of
before may not have known it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel

T = TypeVar("T")
_Build = Callable[[Any], Any]
_PLAIN = (str, int, bytes, bool)


def trusted(cls: type[T], value: Mapping[str, Any]) -> T:
    """An instance of a fact class, a part of one, or a dataclass. Members that a fact class does not have are ignored.

    Raises KeyError, TypeError for a value of another shape; what the members are is not checked."""
    return cast(T, build(cls)(value))


@cache
def build(of: Any) -> _Build:
    """How a value of this type is built. Raises TypeError for a type that no fact and no state has."""
    planned = _planned(of)
    return planned or (lambda value: value)


def _planned(of: Any) -> _Build | None:
    """None: the decoded value is the value."""
    of = getattr(of, "__supertype__", of)  # a NewType
    origin, args = get_origin(of), get_args(of)
    if origin is Annotated:
        return _planned(args[0])
    if of in _PLAIN or origin is Literal:
        return None
    if origin is tuple:
        return _tuple(args)
    if origin in (dict, Mapping):
        member = _planned(args[1])
        return None if member is None else lambda value: {k: member(v) for k, v in value.items()}
    if origin in (Union, UnionType):
        return _union(args)
    if isinstance(of, type) and issubclass(of, BaseModel):
        return _model(of)
    if isinstance(of, type) and is_dataclass(of):
        return _dataclass(of)
    raise TypeError(f"{of!r} is not planned for")


def _tuple(args: tuple[Any, ...]) -> _Build:
    assert len(args) == 2 and args[1] is ..., "tuples of any length only"
    member = _planned(args[0])
    return tuple if member is None else lambda value: tuple([member(v) for v in value])


def _union(args: tuple[Any, ...]) -> _Build | None:
    """An optional value, or small state types distinguished by their `kind`."""
    others = [a for a in args if a is not NoneType]
    if len(others) == 1:
        member = _planned(others[0])
        return None if member is None else lambda value: None if value is None else member(value)
    by_kind = {get_args(get_type_hints(a)["kind"])[0]: build(a) for a in others}
    return lambda value: by_kind[value["kind"]](value)


def _model(cls: type[BaseModel]) -> _Build:
    known = cls.model_fields
    names = frozenset(known)
    defaults = {name: field.get_default(call_default_factory=True) for name, field in known.items() if not field.is_required()}
    nested = [(name, member) for name, field in known.items() if (member := _planned(field.annotation)) is not None]
    new, put = cls.__new__, object.__setattr__

    def make(value: Any) -> BaseModel:
        if value.__class__ is cls:  # a part that was built before, and is shared
            return value
        members = {**defaults, **value} if defaults else dict(value)
        for name, member in nested:
            if name in value:
                members[name] = member(value[name])
        if members.keys() != names:
            members = {name: members[name] for name in known}
        made = new(cls)
        put(made, "__dict__", members)
        put(made, "__pydantic_fields_set__", names)
        put(made, "__pydantic_extra__", None)
        put(made, "__pydantic_private__", None)
        return made

    return make


def _dataclass(cls: type) -> _Build:
    hints = get_type_hints(cls)
    nested = [(f.name, member) for f in fields(cls) if (member := _planned(hints[f.name])) is not None]

    def make(value: Mapping[str, Any]) -> Any:
        members = dict(value)
        for name, member in nested:
            if name in members:
                members[name] = member(members[name])
        return cls(**members)

    return make
