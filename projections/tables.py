"""Every table and view of the read side, created where missing: what `prepare` runs, and what a rebuild runs under another name."""

from __future__ import annotations

import re

from events.process.settings import Settings
from projections.bills import tables as bill_tables
from projections.catalog import tables as history_tables
from projections.dead_letters.sink import DEAD_LETTERS_TABLE, DEAD_LETTERS_VIEW
from projections.ingest.clickhouse import ClickHouse
from projections.usage.views import usage_statements

_NAME = re.compile(r"CREATE (?:OR REPLACE )?(?:TABLE|VIEW) (?:IF NOT EXISTS )?(\w+)")


def apply_tables(settings: Settings) -> list[str]:
    """Creates what is missing and returns every name. Safe to repeat: views are replaced, tables never are; a table that changes its
    columns is rebuilt beside (`modelmarket replay usage`)."""
    ClickHouse(settings, "system").command(f"CREATE DATABASE IF NOT EXISTS `{settings.clickhouse_database}`")
    clickhouse = ClickHouse(settings)
    statements = (
        *history_tables.STATEMENTS,
        *usage_statements("usage"),
        DEAD_LETTERS_TABLE,
        DEAD_LETTERS_VIEW,
        *bill_tables.STATEMENTS,
    )
    for statement in statements:
        clickhouse.command(statement)
    return [m.group(1) for s in statements if (m := _NAME.search(s))]
