"""Reads as much of a ClickHouse statement as an HTTP front needs: what kind it is, its FORMAT, and where settings go. Pure.

Source: ClickHouse's HTTP interface and its INSERT and SELECT grammar. Literals and comments are masked first, so that text in
them is never taken for syntax.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

HEAD_BYTES_MAX = 256 * 1024
"""ClickHouse's own `max_query_size`: the statement before the data of an INSERT is at most this long."""

_OPAQUE = re.compile(
    r"""'(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*` | --[^\n]* | \#[!\ ][^\n]* | /\*.*?\*/ | \$(\w*)\$.*?\$\1\$""",
    re.S | re.X,
)
_INSERT = re.compile(r"\s*INSERT\s+INTO\s", re.I)
_INSERT_FORMAT = re.compile(r"\sFORMAT\s+(\w+)[^\S\n]*;?[^\S\n]*(?:\n|\Z|(?=\S))", re.I)
_INPUT = re.compile(r"\binput\s*\(", re.I)
_SETTINGS = re.compile(r"\sSETTINGS\s", re.I)
_FORMAT_END = re.compile(r"\sFORMAT\s+(\w+)(?=\s*\Z|\s+SETTINGS\s)", re.I)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_INTEGER = re.compile(r"-?\d{1,20}")
_READS = frozenset({"SELECT", "WITH", "SHOW", "DESC", "DESCRIBE", "EXISTS", "EXPLAIN"})
_TAKES_SETTINGS = _READS | {"CREATE", "ALTER", "DROP", "OPTIMIZE", "RENAME", "TRUNCATE", "EXCHANGE"}
# Functions that reach outside the tables: any user of this host can reach the database, so it must not read files, open connections or run programs.
_OUTSIDE = re.compile(
    r"\b(file|fileCluster|url|urlCluster|s3|s3Cluster|gcs|hdfs|hdfsCluster|azureBlobStorage|azureBlobStorageCluster|executable|python|remote|remoteSecure"
    r"|mysql|postgresql|sqlite|mongodb|redis|odbc|jdbc|iceberg\w*|deltaLake\w*|hudi|arrowFlight|cluster|clusterAllReplicas|chdb)\s*\(|\bINTO\s+OUTFILE\b|\bFROM\s+INFILE\b",
    re.I,
)


class BadStatement(Exception):
    """Refused before the engine sees it. `code` is ClickHouse's number for it."""

    def __init__(self, code: int, name: str, reason: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {reason}. ({name})")
        self.code = code


@dataclass(frozen=True, slots=True)
class Insert:
    """`INSERT … FORMAT x` whose rows come after it. `head` is everything before FORMAT; `data_at` where the rows begin."""

    head: str
    format: str
    data_at: int


@dataclass(frozen=True, slots=True)
class Other:
    """Any other statement, without its FORMAT clause."""

    sql: str
    format: str | None
    keyword: str

    @property
    def reads_only(self) -> bool:
        return self.keyword in _READS


def parse(text: str) -> Insert | Other:
    """`text` is the statement, or at least its first HEAD_BYTES_MAX characters when rows follow. Raises BadStatement."""
    masked = _masked(text)
    if _INSERT.match(masked):
        found = _INSERT_FORMAT.search(masked)
        if found:
            _refuse_outside(masked[: found.start()])
            return Insert(text[: found.start()], found.group(1), found.end())
    stripped = masked.rstrip().rstrip(";").rstrip()
    if ";" in stripped:
        raise BadStatement(62, "SYNTAX_ERROR", "One statement a request: multi-statements are not allowed")
    if not stripped.strip():
        raise BadStatement(62, "SYNTAX_ERROR", "Empty query")
    _refuse_outside(stripped)
    text = text[: len(stripped)]
    words = stripped.replace("(", " ").split(None, 1)
    keyword = words[0].upper() if words else ""
    form = None if keyword == "INSERT" else _FORMAT_END.search(stripped)
    if form is None:
        return Other(text, None, keyword)
    rest = text[form.end() :]
    # FORMAT x SETTINGS …: ours will be put in the same place
    text = text[: form.start()] + (rest if rest.strip() else "")
    return Other(text, form.group(1), keyword)


def with_settings(statement: Other, form: str, settings: Mapping[str, str]) -> str:
    """The statement with query-level settings behind an explicit FORMAT, where ClickHouse's grammar takes them."""
    if not settings or statement.keyword not in _TAKES_SETTINGS:
        if statement.keyword == "INSERT" and settings:
            return _add_settings(statement.sql, settings)
        return statement.sql
    return f"{statement.sql}\nFORMAT {form if statement.reads_only else 'Null'} SETTINGS {_listed(settings)}"


def insert_from(insert: Insert, path: str, settings: Mapping[str, str]) -> str:
    """The INSERT with its rows read from `path`: through `input(…)` where the statement has one, else FROM INFILE."""
    masked = _masked(insert.head)
    source = _INPUT.search(masked)
    if source:
        sql = f"{insert.head[: source.start()]}file('{path}', {insert.format}, {insert.head[source.end() :]}"
        return _add_settings(sql, settings)
    if re.search(r"\s(SELECT|VALUES)\s", masked, re.I):
        raise BadStatement(62, "SYNTAX_ERROR", "INSERT … SELECT takes rows from the request only through input(…)")
    at = _SETTINGS.search(masked)
    head, own = (insert.head[: at.start()], insert.head[at.end() :].strip()) if at else (insert.head, "")
    both = ", ".join(x for x in (own, _listed(settings)) if x)
    return f"{head} FROM INFILE '{path}'{' SETTINGS ' + both if both else ''} FORMAT {insert.format}"


def check_settings(settings: Mapping[str, str]) -> None:
    for name in settings:
        if not _NAME.fullmatch(name):
            raise BadStatement(115, "UNKNOWN_SETTING", f"{name[:64]!r} is no name of a setting")


def identifier(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def literal(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _listed(settings: Mapping[str, str]) -> str:
    check_settings(settings)
    return ", ".join(f"{k}={v if _INTEGER.fullmatch(v) else literal(v)}" for k, v in settings.items())


def _add_settings(sql: str, settings: Mapping[str, str]) -> str:
    """Behind an INSERT … SELECT, joined to a SETTINGS clause that is already there."""
    if not settings:
        return sql
    masked = _masked(sql)
    values = re.search(r"\sVALUES\s*\(", masked, re.I)
    if values:
        return f"{sql[: values.start()]} SETTINGS {_listed(settings)}{sql[values.start() :]}"
    found = list(_SETTINGS.finditer(masked))
    trailing = (
        found
        and masked.count("(", found[-1].end()) == masked.count(")", found[-1].end())
        and not re.search(r"\sSELECT\s", masked[found[-1].end() :], re.I)
    )
    return f"{sql}{', ' if trailing else ' SETTINGS '}{_listed(settings)}"


def _masked(text: str) -> str:
    """Same length, literals, quoted names and comments blanked."""

    def blank(m: re.Match[str]) -> str:
        word = m.group()
        # Names and literals stay something, comments become nothing.
        return " " * len(word) if word[0] in "-#/" else "x" * len(word)

    return _OPAQUE.sub(blank, text)


def _refuse_outside(masked: str) -> None:
    found = _OUTSIDE.search(masked)
    if found:
        raise BadStatement(497, "ACCESS_DENIED", f"{found.group().rstrip(' (')} reaches outside the tables; it is not available here")
