"""Every table and view of the read side, created where missing: what `prepare` runs, and what a rebuild runs under another name.

`python -m projections.tables` writes the statements as these settings have them sent, for a cluster where they name one.
"""

from __future__ import annotations

import logging
import re
import sys

from events.process.settings import Settings
from projections.bills import tables as bill_tables
from projections.catalog import tables as history_tables
from projections.dead_letters.sink import DEAD_LETTERS_TABLE, DEAD_LETTERS_VIEW
from projections.ingest.clickhouse import ClickHouse, ClickHouseError
from projections.ingest.replicas import SPLIT, on_cluster
from projections.usage.views import usage_statements

logger = logging.getLogger(__name__)
_COLUMN = re.compile(r"^    (\w+) ", re.MULTILINE)
_NAME = re.compile(r"CREATE (?:OR REPLACE )?(?:TABLE|VIEW) (?:IF NOT EXISTS )?(\w+)")


def apply_tables(settings: Settings) -> list[str]:
    """Creates what is missing and returns every name. Safe to repeat: views are replaced, tables are not. When `usage` changes its columns
    it is rebuilt beside (`modelmarket replay usage`); a history of other columns is dropped, and the workers fold it again."""
    ClickHouse(settings, "system").command(create_database(settings))
    clickhouse = ClickHouse(settings)
    _check_replicas(settings, clickhouse)
    _drop_other_history(clickhouse)
    for statement in statements():
        clickhouse.command(statement)
    return [m.group(1) for s in statements() if (m := _NAME.search(s))]


def create_database(settings: Settings) -> str:
    return f"CREATE DATABASE IF NOT EXISTS `{settings.clickhouse_database}`"


def statements() -> tuple[str, ...]:
    """In the order in which they must be made; each may be run again. `ClickHouse.command` says them to every replica of a cluster."""
    return (
        *history_tables.STATEMENTS,
        *usage_statements("usage"),
        DEAD_LETTERS_TABLE,
        DEAD_LETTERS_VIEW,
        *bill_tables.STATEMENTS,
    )


def _check_replicas(settings: Settings, clickhouse: ClickHouse) -> None:
    """Raises ClickHouseError where a replica lacks tables that others have: they would be made there as other tables."""
    if not (cluster := settings.clickhouse_cluster):
        return
    split = clickhouse.rows(SPLIT, {"cluster": cluster, "database": settings.clickhouse_database})
    if split:
        found = "; ".join(f"{row['name']} on {row['there']} of {row['replicas']}" for row in split)
        raise ClickHouseError(
            0, f"replicas of {cluster} lack tables that others have: {found} (docs/operations.md, A replica of ClickHouse)"
        )


def _drop_other_history(clickhouse: ClickHouse) -> None:
    sql = "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'history_rows'"
    there = {str(r["name"]) for r in clickhouse.rows(sql)}
    if there and there != set(_COLUMN.findall(history_tables.HISTORY_ROWS)):
        logger.warning(
            "history_rows has other columns than this release writes: it is dropped, and folded again from the log's first record"
        )
        clickhouse.command("DROP TABLE history_rows")


def main() -> None:
    settings = Settings()
    for statement in (create_database(settings), *statements()):
        sys.stdout.write(on_cluster(statement, settings.clickhouse_cluster).strip() + ";\n")


if __name__ == "__main__":
    main()
