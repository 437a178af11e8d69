"""Tables for eighty columns and for pipes: nothing in them is cut. What is too wide goes on in the next line of its cell."""

from __future__ import annotations

from collections.abc import Collection

from rich.table import Table


def table(*columns: str, whole: Collection[str] = (), right: Collection[str] = (), title: str | None = None) -> Table:
    """`whole`: columns whose values are copied into other commands, or compared: they are not broken. `right`: those of numbers."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in whole)
    return made
