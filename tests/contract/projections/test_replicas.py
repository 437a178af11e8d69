"""The statements for a cluster of clickhouse-servers: all tables, each replicated, each statement for all replicas, and each parses (K6).

The engine's own parser reads them: no server runs here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from events.process.settings import Settings
from infra.clickhouse_local.grants import OWN_ROLES, server_analyst, server_role_user, server_statements
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.replicas import SPLIT, NotForClusters, insert_settings, on_cluster, read_settings
from projections.tables import apply_tables, create_database, statements
from projections.usage.rebuild import BESIDE, TABLE
from projections.usage.views import usage_statements, view_names
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess

pytestmark = pytest.mark.engine

CLUSTER = "market-cluster"


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    process = ClickHouseProcess(tmp_path_factory.mktemp("replicas"))
    process.start()
    apply_tables(process.settings)
    yield ClickHouse(process.settings)
    process.stop()


def tree_of(clickhouse: ClickHouse, statement: str) -> dict[str, Any]:
    return json.loads(clickhouse.value("SELECT parseQueryToJSON({q:String})", {"q": statement}))


def test_every_table_and_view_is_made_on_every_replica_and_every_table_is_replicated(clickhouse: ClickHouse) -> None:
    there = {str(r["name"]): r for r in clickhouse.rows("SELECT name, engine FROM system.tables WHERE database = currentDatabase()")}
    made = dict[str, str]()
    for statement in statements():
        tree = tree_of(clickhouse, on_cluster(statement, CLUSTER))
        assert tree["cluster"] == CLUSTER, statement
        if tree["type"] == "CreateQuery":
            name = str(tree.get("table") or tree["view"])
            made[name] = str(tree["storage"]["engine"]["name"]) if tree.get("storage") else "View"
    assert made == {name: "View" if row["engine"] == "View" else f"Replicated{row['engine']}" for name, row in there.items()}
    assert tree_of(clickhouse, on_cluster(create_database(Settings()), CLUSTER))["cluster"] == CLUSTER


def test_a_rebuild_is_for_every_replica_too(clickhouse: ClickHouse) -> None:
    asked = [
        *usage_statements(BESIDE),
        f"EXCHANGE TABLES {TABLE} AND {BESIDE}",
        f"RENAME TABLE {BESIDE} TO kept",
        f"DROP TABLE IF EXISTS {BESIDE}",
    ]
    asked += ["DROP TABLE history_rows", "TRUNCATE TABLE history_rows", *(f"DROP VIEW IF EXISTS {name}" for name in view_names(BESIDE))]
    for statement in asked:
        assert tree_of(clickhouse, on_cluster(statement, CLUSTER))["cluster"] == CLUSTER, statement


def test_roles_users_and_row_policies_are_made_on_every_replica(clickhouse: ClickHouse) -> None:
    asked = server_statements("market", CLUSTER)
    asked += [server_role_user(role, "p", CLUSTER) for role in OWN_ROLES] + [server_analyst("analyst-acme", "acme", "a" * 64, CLUSTER)]
    for statement in asked:
        assert f" ON CLUSTER `{CLUSTER}`" in statement, statement
        assert " ON CLUSTER " in clickhouse.value("SELECT formatQuerySingleLine({q:String})", {"q": statement})
    assert "GRANT ON CLUSTER `market-cluster` CLUSTER ON *.* TO operator" in asked


@pytest.mark.parametrize(
    "statement",
    [
        "SYSTEM STOP MERGES usage",
        "CREATE TABLE t (a Int8) ENGINE = Memory",
        "CREATE MATERIALIZED VIEW v AS SELECT 1",
        "CREATE TABLE t AS usage",
    ],
)
def test_a_statement_that_would_change_one_replica_only_is_refused(statement: str) -> None:
    with pytest.raises(NotForClusters):
        on_cluster(statement, CLUSTER)
    assert on_cluster(statement, "") == statement


def test_without_a_cluster_nothing_is_said_of_one() -> None:
    assert (insert_settings("", 3), read_settings(""), Settings().clickhouse_cluster) == ({}, {}, "")
    assert [on_cluster(s, "") for s in statements()] == list(statements())


def test_what_is_asked_of_all_replicas_parses(clickhouse: ClickHouse) -> None:
    filled = SPLIT.replace("{cluster:Identifier}", CLUSTER.replace("-", "_"))
    assert clickhouse.value("SELECT formatQuerySingleLine({q:String})", {"q": filled})


def test_the_command_writes_the_statements() -> None:
    command = [sys.executable, "-m", "projections.tables"]
    written = subprocess.run(
        command, env={"MODELMARKET_CLICKHOUSE_CLUSTER": CLUSTER}, capture_output=True, text=True, check=True, timeout=120
    )
    assert written.stdout.count(f" ON CLUSTER `{CLUSTER}`") == len(statements()) + 1
