"""The same tables on a clickhouse-server cluster of one shard and several replicas: statements for all replicas, and reads and inserts that
another replica cannot contradict (K6). Pure.

Source: ClickHouse documentation, *Distributed DDL*, *Data replication*, settings `insert_quorum`, `insert_quorum_parallel`,
`select_sequential_consistency`. A replicated table has the server's default path in Keeper, `/clickhouse/tables/{uuid}/{shard}`: its name may be
exchanged and given away again, and a replica that joins later must be given the tables with their UUIDs (docs/operations.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = r"[`\w.]+"
_HEAD = re.compile(
    rf"\s*(?:CREATE (?:OR REPLACE )?(?:DATABASE|TABLE|VIEW) (?:IF NOT EXISTS )?{_NAME}"
    rf"|DROP (?:DATABASE|TABLE|VIEW) (?:IF EXISTS )?{_NAME}"
    rf"|TRUNCATE TABLE (?:IF EXISTS )?{_NAME}"
    rf"|ALTER TABLE {_NAME}"
    rf"|RENAME TABLE {_NAME} TO {_NAME}"
    rf"|EXCHANGE TABLES {_NAME} AND {_NAME})"
)
_ENGINE = re.compile(r"(\bENGINE = )((?:[A-Z]\w*)?MergeTree\b)")
_NO_DDL = re.compile(r"\s*(INSERT|OPTIMIZE|KILL)\b")


class NotForClusters(Exception):
    """A statement that would change one replica only: a defect of ours."""


def on_cluster(statement: str, cluster: str) -> str:
    """The statement, for every replica of `cluster`; as it is where `cluster` is empty. Raises NotForClusters."""
    if not cluster or _NO_DDL.match(statement):
        return statement
    head = _HEAD.match(statement)
    if head is None:
        raise NotForClusters(f"not known how to say this to all replicas: {statement.strip()[:200]}")
    rest = statement[head.end() :]
    if head.group().lstrip().startswith("CREATE") and "TABLE" in head.group():
        rest, engines = _ENGINE.subn(r"\1Replicated\2", rest, count=1)
        if not engines:
            raise NotForClusters(f"its table keeps its rows on one replica: {statement.strip()[:200]}")
    rest = rest.replace("non_replicated_deduplication_window", "replicated_deduplication_window")
    return f"{head.group()} ON CLUSTER `{cluster}`{rest}"


def ddl_settings(cluster: str, answer_s_max: float) -> Mapping[str, object]:
    """A host that is away is an error before the connection is given up, and the statement is sent again: it bears that."""
    return {"distributed_ddl_task_timeout": max(1, int(answer_s_max * 0.8)), "distributed_ddl_output_mode": "throw"} if cluster else {}


def insert_settings(cluster: str, answer_s_max: float) -> Mapping[str, object]:
    """An insert is done when most replicas have it. One after the other: only then a sequential read is one."""
    if not cluster:
        return {}
    return {"insert_quorum": "auto", "insert_quorum_parallel": 0, "insert_quorum_timeout": max(1, int(answer_s_max * 800))}


def read_settings(cluster: str) -> Mapping[str, object]:
    """Of a replica that lacks an insert which was acknowledged, a read asks for nothing: it is refused, and sent again."""
    return {"select_sequential_consistency": 1} if cluster else {}


UNSETTLED = frozenset(
    {
        209,  # SOCKET_TIMEOUT
        210,  # NETWORK_ERROR
        225,  # NO_ZOOKEEPER
        242,  # TABLE_IS_READ_ONLY: it has lost Keeper
        279,  # ALL_CONNECTION_TRIES_FAILED
        285,  # TOO_FEW_LIVE_REPLICAS
        286,  # UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE: another worker's insert is under way
        289,  # REPLICA_IS_NOT_IN_QUORUM: it lacks the newest insert
        319,  # UNKNOWN_STATUS_OF_INSERT
        999,  # KEEPER_EXCEPTION
    }
)
"""Error codes of servers that wait for each other: what failed with one may have happened, and may succeed when it is sent again."""
TIMEOUT_EXCEEDED = 159
"""Of a statement for all replicas: one of them is away."""

SPLIT = """
SELECT name, count() AS there, (SELECT count() FROM system.clusters WHERE cluster = {cluster:String}) AS replicas
FROM clusterAllReplicas({cluster:Identifier}, system.tables)
WHERE database = {database:String} AND startsWith(engine, 'Replicated')
GROUP BY name HAVING there != replicas ORDER BY name
"""
"""Replicated tables that only some replicas have: made on the others now, each would be another table that never gets the rows of the first."""
