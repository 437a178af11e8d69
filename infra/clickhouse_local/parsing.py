"""What a statement means, as the engine's own parser says: its kind, its tree, its FORMAT, and where the rows of an INSERT begin.

The parser is asked through `parseQueryToJSON`, which parses one statement and runs nothing. Source: ClickHouse 26.9, as it is in chDB 4.4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import orjson

HEAD_BYTES_MAX = 256 * 1024
"""ClickHouse's own `max_query_size`: the statement before the data of an INSERT is at most this long."""
KNOWN_MAX = 1024
"""Statements whose meaning is remembered: our own processes send the same few hundred, with parameters."""
HEADS_MAX = 32
"""Places tried for the end of an INSERT; only literals and comments with the word FORMAT or VALUES make it more than one."""
_BEGINS_INSERT = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*INSERT\s", re.I | re.S)
_ROWS_MAY_FOLLOW = re.compile(r"\bFORMAT\s+\w+[^\S\n]*;?[^\S\n]*\n?|\bVALUES\b", re.I)
_WITHOUT_TREE = re.compile(r"AST node of type '(\w+?)(?:_.*?)?' does not support JSON", re.S)
_LAST_CLAUSE = re.compile(r"^FORMAT (\w+)\Z", re.M)
"""As the engine writes it; names have no line breaks there."""
_OUR_QUESTION = re.compile(r"(?:: In scope SELECT parseQueryToJSON\(.*)?\. \((\w+)\)\s*\Z", re.S)

Tree = Mapping[str, Any]


class BadStatement(Exception):
    """Refused before the engine runs it. `code` is ClickHouse's number for it."""

    def __init__(self, code: int, name: str, reason: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {reason}. ({name})")
        self.code = code


class EngineError(Exception):
    """An error of ClickHouse, with its `code`."""

    def __init__(self, text: str) -> None:
        found = re.search(r"Code:? (\d+)", text)
        super().__init__(text)
        self.code = int(found.group(1)) if found else 1002


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. `kind` is the type of its node, such as SelectWithUnionQuery. Of kinds that the engine does not return as a tree
    (DESCRIBE, EXISTS, SHOW CREATE) `outline` has the lines of EXPLAIN AST, and `tree` the FORMAT alone. `text` ends where the rows of an
    INSERT begin."""

    text: str
    kind: str
    tree: Tree
    outline: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        """Of its FORMAT clause; empty without one."""
        named = self.tree.get("format_ast") or {}
        return str(self.tree.get("format") or named.get("name") or "")

    @property
    def takes_rows(self) -> bool:
        """An INSERT whose rows come after it."""
        if self.kind != "InsertQuery" or not self.format or "infile" in self.tree:
            return False
        return "select" not in self.tree or any(True for _ in inputs(self.tree))

    @property
    def reads_only(self) -> bool:
        return self.kind == "SelectWithUnionQuery" or self.kind.startswith(("Show", "Describe", "Exists", "Explain"))


class Parser:
    """`ask` runs a SELECT of ours and returns its only value as text. Raises EngineError."""

    def __init__(self, ask: Callable[[str], str]) -> None:
        self._ask = ask
        self.statement = lru_cache(KNOWN_MAX)(self._statement)
        self._with_rows_from = lru_cache(KNOWN_MAX)(self._written_with_rows_from)

    def insert(self, text: str) -> Statement | None:
        """The INSERT … FORMAT that a text begins with, whatever rows follow. What the engine parses up to there counts, so that words in
        literals and comments are not mistaken for the clause."""
        if _BEGINS_INSERT.match(text) is None:
            return None
        for tried, found in enumerate(_ROWS_MAY_FOLLOW.finditer(text)):
            if tried == HEADS_MAX:
                return None
            try:
                statement = self.statement(text[: found.end()])
            except (EngineError, BadStatement):
                continue
            if statement.takes_rows:
                return statement
        return None

    def with_rows_from(self, statement: Statement, path: str) -> str:
        """The INSERT, as the engine writes it, with its rows read from a file: FROM INFILE, or file(…) where it says input(…)."""
        return self._with_rows_from(statement.text).replace(_ROWS, path)

    def _statement(self, text: str) -> Statement:
        """Raises EngineError for what is no statement or more than one."""
        if len(text.encode("utf-8", "replace")) > HEAD_BYTES_MAX or "\0" in text:
            raise BadStatement(62, "SYNTAX_ERROR", f"The statement is longer than {HEAD_BYTES_MAX} bytes, or has a zero byte")
        try:
            tree = cast(Tree, orjson.loads(self._ask(f"SELECT parseQueryToJSON({literal(text)})")))
        except orjson.JSONDecodeError as e:
            raise BadStatement(306, "TOO_DEEP_RECURSION", "The statement is nested too deeply") from e
        except EngineError as e:
            kind = _WITHOUT_TREE.search(str(e))
            if kind is None:
                raise EngineError(_OUR_QUESTION.sub(r". (\1)", str(e))) from None
            # It parsed as one statement, so nothing of it can end ours.
            outline = tuple(self._ask(f"EXPLAIN AST {text}").splitlines())
            form = _LAST_CLAUSE.search(self._ask(f"SELECT formatQuery({literal(text)})"))
            return Statement(text, kind.group(1), {"format": form.group(1)} if form else {}, outline)
        return Statement(text, str(tree["type"]), tree)

    def _written_with_rows_from(self, text: str) -> str:
        tree = cast(dict[str, Any], orjson.loads(orjson.dumps(self.statement(text).tree)))
        if "select" in tree:
            for function in inputs(tree):
                structure = function["arguments"]["children"]
                function["name"] = "file"
                function["arguments"]["children"] = [_text(_ROWS), _text(tree["format"]), *structure]
            del tree["format"]
        else:
            tree["infile"] = _text(_ROWS)
        return self._ask(f"SELECT formatQueryFromJSON({literal(orjson.dumps(tree).decode())})")


_ROWS = "/rows-of-this-insert"
"""Stands for the path of the rows until it is known."""


def nodes(tree: object) -> Iterator[dict[str, Any]]:
    """Every node of a tree, however deep. Values of literals are no nodes."""
    waiting = [tree]
    while waiting:
        match waiting.pop():
            case dict() as node:
                typed = cast(dict[str, Any], node)
                if "field_type" not in typed:
                    yield typed
                    waiting += typed.values()
            case list() as several:
                waiting += cast(list[object], several)
            case _:
                pass


def table_functions(tree: Tree) -> Iterator[dict[str, Any]]:
    """The table functions that a statement reads from or writes to."""
    for node in nodes(tree):
        for place in ("table_function", "as_table_function"):
            if place in node:
                yield node[place]


def inputs(tree: Tree) -> Iterator[dict[str, Any]]:
    return (f for f in table_functions(tree) if f["name"] == "input")


def structures(statement: Statement) -> Iterator[str]:
    """The columns in the argument of `input(…)`, as text."""
    for function in inputs(statement.tree):
        for argument in function.get("arguments", {}).get("children", ()):
            yield str(argument["value"]["value"]) if argument.get("type") == "Literal" else ""


def literal(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _text(value: str) -> dict[str, Any]:
    return {"type": "Literal", "value": {"field_type": "String", "value": value}}
