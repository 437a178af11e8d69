"""What a role may ask at all, by the tree that the engine parsed. Pure. The engine's grants and row policies hold beside it.

Grants do not know everything: `file('/path')` as a scalar function needs none, INTO OUTFILE is done by the client side of chDB, and
SETTINGS could change what a row policy compares with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from infra.clickhouse_local.grants import ENGINES, SYSTEM_TABLES, Role
from infra.clickhouse_local.parsing import BadStatement, Statement, Tree, nodes, table_functions

_READS = frozenset(
    (
        *("SelectWithUnionQuery", "ShowTablesQuery", "ShowColumnsQuery", "ShowIndexesQuery", "DescribeQuery"),
        *("ExistsTableQuery", "ExistsViewQuery", "ExistsDatabaseQuery", "ShowCreateTableQuery", "ShowCreateViewQuery"),
    )
)
_KINDS: Mapping[Role, frozenset[str]] = {
    "analyst": _READS,
    "bills": _READS | {"ExplainQuery", "InsertQuery"},  # into the tables of its grants
    "ingest": _READS | {"ExplainQuery", "InsertQuery"},
    "operator": _READS
    | {"ExplainQuery", "InsertQuery", "CreateQuery", "AlterQuery", "DropQuery", "RenameQuery", "OptimizeQuery", "DeleteQuery"}
    | {"CheckTableQuery", "KillQueryQuery", "ShowProcesslistQuery", "ShowGrantsQuery"},
}
_TABLE_FUNCTIONS = frozenset(["numbers", "numbers_mt", "zeros", "zeros_mt", "values", "view", "null", "generate_series", "generateseries"])
_WHO_MAY_MORE: Mapping[Role, frozenset[str]] = {
    "analyst": frozenset(),
    "bills": frozenset(["merge"]),
    "ingest": frozenset(["input"]),
    "operator": frozenset(["input", "merge"]),
}
_OUTSIDE = frozenset(
    (
        *("file", "logtrace", "showcertificate", "catboostevaluate", "getclienthttpheader", "hascolumnintable", "joinget", "joingetornull"),
        *("zookeepersessionuptime",),
        *("airedact", "aisimilarity", "aifilter", "aiclassify", "aiembed", "aiextract", "aigenerate", "aitranslate"),
    )
)
"""Functions that reach outside the tables. A function can also be named as an argument (`arrayMap(file, …)`) or after APPLY, so that
a column cannot have such a name here."""
_STORAGE_SETTINGS = frozenset(["disk", "table_disk", "storage_policy"])
_DATABASE_ENGINES = frozenset(["Atomic"])
_NEVER = {"out_file": "INTO OUTFILE", "infile": "FROM INFILE", "attach_from_path": "ATTACH … FROM"}
ANALYST_SETTINGS = frozenset(
    (
        *("date_time_input_format", "date_time_output_format", "cast_string_to_dynamic_use_inference", "join_use_nulls"),
        *("max_block_size",),
        *("output_format_json_quote_64bit_integers", "output_format_json_quote_denormals", "output_format_json_validate_utf8"),
        *("output_format_native_encode_types_in_binary_format", "output_format_native_write_json_as_string"),
        *("output_format_decimal_trailing_zeros",),
        *("output_format_arrow_string_as_string", "output_format_parquet_string_as_string"),
        *("output_format_json_named_tuples_as_objects",),
        *("format_csv_delimiter", "union_default_mode", "final", "prefer_column_name_to_alias", "group_by_use_nulls"),
        *("low_cardinality_allow_in_native_format",),
        *("async_insert",),  # the JDBC driver says it with every statement; an analyst inserts nothing
    )
)
"""Of the URL's arguments: how an answer is written and how SQL is understood, never whose rows it is computed from."""
PARSER_SETTINGS = frozenset(["dialect", "implicit_select", "allow_settings_after_format_in_insert", "enable_json_ast_dialect"])
"""They would make the engine run something else than what was parsed here."""


def check(role: Role, statement: Statement, database: str) -> None:
    """`database` is the analysts' one. Raises BadStatement."""
    if statement.kind not in _KINDS[role]:
        raise _denied(f"{statement.kind} is not a statement for {role}")
    if statement.outline:
        _check_outline(statement)
        return
    for node in nodes(statement.tree):
        _check_node(role, node)
    for function in table_functions(statement.tree):
        if _name(function) not in _TABLE_FUNCTIONS | _WHO_MAY_MORE[role]:
            raise _denied(f"table function {_name(function)} is not available here")
    if statement.kind == "InsertQuery" and "table_function" in statement.tree:
        raise _denied("INSERT INTO FUNCTION is not available here")
    if role == "analyst":
        _check_tables(statement.tree, database)


def check_settings(role: Role, settings: Mapping[str, str]) -> None:
    """Arguments of the URL that are settings. Raises BadStatement."""
    for name in settings:
        if name in PARSER_SETTINGS or (role == "analyst" and name not in ANALYST_SETTINGS):
            raise BadStatement(452, "SETTING_CONSTRAINT_VIOLATION", f"Setting {name[:64]} is not for {role} to change")


def _check_node(role: Role, node: Mapping[str, Any]) -> None:
    for place, clause in _NEVER.items():
        if place in node:
            raise _denied(f"{clause} is not available here")
    if node.get("type") == "SetQuery" and role == "analyst":
        raise _denied("SETTINGS are not for an analyst's statement; some can be given as arguments of the URL")
    for named in ("name", "func_name"):
        if str(node.get(named, "")).rpartition(".")[2].lower() in _OUTSIDE:
            raise _denied(f"{node[named]} reaches outside the tables; it is not available here")
    if node.get("type") == "QueryParameter" and node.get("param_type") == "Identifier":
        raise _denied("names are written in the statement, not given as a parameter")
    if node.get("type") == "SetQuery" and any(change.get("name") in _STORAGE_SETTINGS for change in node.get("changes", ())):
        raise _denied("where a table's files lie is not for a statement to say")
    if node.get("type") == "CreateQuery":
        _check_create(node)


def _check_create(node: Mapping[str, Any]) -> None:
    storage = cast(Mapping[str, Any], node.get("storage") or {})
    engine = storage.get("engine")
    allowed = ENGINES if node.get("table") else _DATABASE_ENGINES
    if node.get("attach") or node.get("is_dictionary") or node.get("is_temporary"):
        raise _denied("ATTACH, dictionaries and temporary tables are not available here")
    if engine is not None and engine["name"] not in allowed:
        raise _denied(f"ENGINE {engine['name']} is not available here")


def _check_outline(statement: Statement) -> None:
    """DESCRIBE and the like of a table by its name: no function, no statement within."""
    for line in statement.outline[1:]:
        if line.split()[:1] not in (["TableExpression"], ["TableIdentifier"], ["Identifier"]):
            raise _denied(f"{statement.kind} takes the name of a table here")


def _check_tables(tree: Tree, database: str) -> None:
    for parts in _tables(tree):
        match parts:
            case [_] | [str(), _] if parts[0] == database or len(parts) == 1:
                pass
            case ["system", table] if table in SYSTEM_TABLES:
                pass
            case _:
                raise _denied(f"{'.'.join(parts)[:200]} is not for an analyst")


def _tables(tree: Tree) -> Iterator[list[str]]:
    for node in nodes(tree):
        if node.get("type") == "TableIdentifier":
            parts = [str(part) for part in node.get("name_parts") or [node.get("name", "")]]
            yield parts


def _name(function: Mapping[str, Any]) -> str:
    return str(function.get("name", "")).lower()


def _denied(reason: str) -> BadStatement:
    return BadStatement(497, "ACCESS_DENIED", f"Not enough privileges: {reason}")
