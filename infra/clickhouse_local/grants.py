"""Who may do what inside the engine: roles, grants and row policies, once, as chDB's users file and as the DDL of a clickhouse-server.

A row policy compares a row with the tenant that the session was opened for. In chDB that is the setting `log_comment`: there are no settings
of one's own, and one user, whose roles are switched. On a server it is `SQL_tenant`, which is constant for the user.

`python -m infra.clickhouse_local.grants` writes the DDL, which is `infra/clickhouse-roles.sql`; with names of tenants, the users of their
analysts, each with a fresh password.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from typing import Literal
from xml.sax.saxutils import escape

from events.process.settings import Settings

Role = Literal["ingest", "bills", "operator", "analyst"]
OWN_ROLES: tuple[Role, ...] = ("ingest", "bills", "operator")
"""Of the market's own processes and people; each has a password. An analyst has an API key."""
ROLES: tuple[Role, ...] = (*OWN_ROLES, "analyst")
LOADER = "loader"
"""Reads the rows of an INSERT from memory: enabled for such a statement only."""
TENANT_SETTING, SERVER_TENANT_SETTING = "log_comment", "SQL_tenant"

ENGINES = (
    *(f"{kind}MergeTree" for kind in ("", "Replacing", "Summing", "Aggregating", "Collapsing", "VersionedCollapsing")),
    "Memory",
    "Null",
)
"""Of tables that may be made: they keep their rows themselves. ReplicatedMergeTree and the like are for a server."""

_GRANTS: dict[Role, tuple[str, ...]] = {
    "ingest": ("SELECT, INSERT ON *.*",),
    "bills": ("SELECT ON *.*",),
    "operator": (
        "SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP DATABASE, DROP TABLE, DROP VIEW, TRUNCATE, OPTIMIZE ON *.*",
        "KILL QUERY ON *.*",
        *(f"TABLE ENGINE ON {engine}" for engine in ENGINES),
    ),
}

_GRANTS_ON_CLUSTER = (
    "CLUSTER ON *.*",
    "REMOTE, CREATE TEMPORARY TABLE ON *.*",  # set-up asks all replicas which tables they have
    *(f"TABLE ENGINE ON Replicated{engine}" for engine in ENGINES if engine.endswith("MergeTree")),
)
"""More that set-up, which is `operator` there, needs where each statement is for every replica."""

WRITTEN_BY_BILLER = ("bills_running_rows", "bill_lines_running_rows", "usage_held_rows", "usage_verified", "usage_decided_rows")
"""Running bills, and what is held of usage: issued bills and decisions come by the log."""
OWN_ROWS = {
    "usage": "tenant = {tenant}",
    "usage_held_rows": "tenant = {tenant}",
    "usage_decided_rows": "tenant = {tenant}",
    "bills_running_rows": "tenant = {tenant}",
    "bill_lines_running_rows": "tenant = {tenant}",
    "history_rows": "topic IN ('accounts', 'bills', 'models', 'deployments') AND tenant = {tenant}",
}
"""Tables that an analyst reads, and which of their rows. Views read with the rights of who asks, so these decide for them too."""
VIEWS = (
    *("metering_daily", "usage_counted", "usage_rows", "usage_held", "usage_held_all", "bills", "bill_lines", "bills_running"),
    *("history", "history_parts", "documents", "document_parts", "catalog", "catalog_history", "tenants", "api_keys"),
)

SYSTEM_TABLES = frozenset(
    (
        *("one", "numbers", "numbers_mt", "zeros", "zeros_mt", "databases", "tables", "columns", "settings", "functions"),
        *("table_functions",),
        *("data_type_families", "formats", "table_engines", "time_zones", "collations", "keywords", "build_options", "licenses"),
        *("contributors",),
        *("aggregate_function_combinators", "merge_tree_settings", "macros", "data_skipping_indices", "dictionaries"),
    )
)
"""Of database `system` for an analyst: they show the engine, and of tables only those with a grant."""
_HIDDEN = (
    *(
        "processes",
        "query_cache",
        "errors",
        "stack_trace",
        "parts",
        "parts_columns",
        "detached_parts",
        "projection_parts",
        "mutations",
        "merges",
    ),
    *("events", "metrics", "asynchronous_metrics", "query_log", "query_thread_log", "part_log", "text_log", "trace_log", "session_log"),
    *("asynchronous_insert_log", "query_views_log", "view_refreshes", "dropped_tables", "moves", "part_moves_between_shards", "warnings"),
    *("user_processes", "background_schedule_pool", "filesystem_cache", "query_metric_log", "processors_profile_log", "error_log", "disks"),
)
"""They show other tenants' statements and data, and the engine shows them to every user: an analyst sees no row there."""

_SIZES = {"tables": "name", "columns": "table", "data_skipping_indices": "table"}
"""They tell how large a table is, all tenants together, and in which files: an analyst finds the views there, which have no size."""


def users_xml(database: str) -> str:
    """chDB's users file: one user that has every role; a session keeps one of them (`SET ROLE`)."""
    roles = {role: [f"GRANT {g}" for g in _granted(role, database)] for role in ROLES} | {
        LOADER: ["GRANT READ ON FILE", "GRANT CREATE TEMPORARY TABLE ON *.*"]
    }
    defined = "".join(
        f"<{r}><grants>{''.join(f'<query>{escape(g)}</query>' for g in grants)}</grants></{r}>" for r, grants in roles.items()
    )
    unless = "NOT has(currentRoles(), 'analyst')"
    own = "".join(_filter(table, f"{unless} OR ({_condition(table, TENANT_SETTING)})") for table in OWN_ROWS)
    names = ", ".join(f"'{table}'" for table in OWN_ROWS)
    hidden = "".join(_filter(table, unless) for table in _HIDDEN)
    hidden += "".join(_filter(system, f"{unless} OR {column} NOT IN ({names})") for system, column in _SIZES.items())
    return f"""<clickhouse>
<profiles><default/></profiles><quotas><default/></quotas>
<roles>{defined}</roles>
<users><default><password></password><networks><ip>::1</ip><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota>
<grants>{"".join(f"<query>GRANT {role}</query>" for role in roles)}</grants>
<databases><{database}>{own}</{database}><system>{hidden}</system></databases>
</default></users>
</clickhouse>
"""


def server_statements(database: str, cluster: str = "") -> list[str]:
    """What a clickhouse-server needs once for the same, or every replica of `cluster`: roles, grants and row policies. Its configuration sets
    `custom_settings_prefixes` to `SQL_`, and `access_control_improvements.select_from_system_db_requires_grant` to true."""
    everywhere = _everywhere(cluster)
    statements = [f"CREATE ROLE IF NOT EXISTS {role}{everywhere}" for role in ROLES]
    granted = {role: _granted(role, database) + (_GRANTS_ON_CLUSTER if cluster and role == "operator" else ()) for role in ROLES}
    granted["analyst"] += tuple(f"SELECT ON system.{table}" for table in sorted(SYSTEM_TABLES))
    statements += [f"GRANT{everywhere} {right} TO {role}" for role in ROLES for right in granted[role]]
    for table in OWN_ROWS:
        target = f"{database}.{table}"
        own, rest = (f"CREATE ROW POLICY OR REPLACE {policy} ON {target}{everywhere} USING" for policy in ("own_rows", "every_row"))
        statements += [f"{own} {_condition(table, SERVER_TENANT_SETTING)} TO analyst", f"{rest} 1 TO ALL EXCEPT analyst"]
    return statements


def _everywhere(cluster: str) -> str:
    return f" ON CLUSTER `{cluster}`" if cluster else ""


def server_role_user(role: Role, password: str, cluster: str = "") -> str:
    """The user on a clickhouse-server with the name of one of our own roles. `password`: letters, digits and what compose replaces.
    The role's grants come before: once there is such a user, GRANT … TO its name would mean the user."""
    assert "'" not in password and "\\" not in password
    return f"CREATE USER IF NOT EXISTS {role}{_everywhere(cluster)} IDENTIFIED WITH sha256_password BY '{password}' DEFAULT ROLE {role}"


def server_analyst(user: str, tenant: str, password_sha256: str, cluster: str = "") -> str:
    """The user of one tenant's analysts on a clickhouse-server. `user` and `tenant` are names of this market: letters, digits, - and _.
    The JDBC driver says `async_insert=0` with every statement, and a read-only user may only say of a setting what it is already."""
    assert all(c.isalnum() or c in "-_" for c in user + tenant) and len(password_sha256) == 64
    return (
        f"CREATE USER OR REPLACE `{user}`{_everywhere(cluster)} IDENTIFIED WITH sha256_hash BY '{password_sha256}' DEFAULT ROLE analyst"
        f" SETTINGS async_insert = 0, {SERVER_TENANT_SETTING} = '{tenant}' CONST, readonly = 1"
    )


def _granted(role: Role, database: str) -> tuple[str, ...]:
    if role == "analyst":
        return tuple(f"SELECT ON {database}.{name}" for name in (*OWN_ROWS, *VIEWS))
    if role == "bills":
        return (*_GRANTS[role], *(f"INSERT ON {database}.{table}" for table in WRITTEN_BY_BILLER))
    return _GRANTS[role]


def _condition(table: str, setting: str) -> str:
    """A session without a tenant has no row."""
    return OWN_ROWS[table].format(tenant=f"nullIf(getSetting('{setting}'), '')")


def _filter(table: str, condition: str) -> str:
    return f"<{table}><filter>{escape(condition)}</filter></{table}>"


def main() -> None:
    settings = Settings()
    statements = [] if sys.argv[1:] else server_statements(settings.clickhouse_database, settings.clickhouse_cluster)
    for tenant in sys.argv[1:]:
        password = secrets.token_hex(32)
        statements += [f"-- password of analyst-{tenant}: {password}"]
        statements += [
            server_analyst(f"analyst-{tenant}", tenant, hashlib.sha256(password.encode()).hexdigest(), settings.clickhouse_cluster)
        ]
    sys.stdout.write("".join(s + ("\n" if s.startswith("--") else ";\n") for s in statements))


if __name__ == "__main__":
    main()
