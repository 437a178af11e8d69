"""A session of the engine: a connection with one role, its database and its settings, which it changes only where they differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from infra.clickhouse_local.parsing import BadStatement, EngineError, identifier, literal

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
NOT_TEXT = "Code: 117. DB::Exception: the engine's message quotes data that is no text, so Python has lost it (INCORRECT_DATA)"
"""Instead of an empty message: before 3.11.4 Python drops one that is not UTF-8."""
_INTEGER = re.compile(r"-?\d{1,20}")


class Session:
    """Used by one thread at a time. `role` is what SET ROLE takes. Once `broken`, it is to be closed and not used again: its settings are
    not known, or a statement has failed, and what the engine had written of that answer would begin the next one (chDB 4.4)."""

    def __init__(self, connect: Callable[[str], Any], path: str, role: str) -> None:
        self._connection = connect(path)
        self._database = ""
        self.settings: dict[str, str] = {}
        self.broken = False
        self.query(f"SET ROLE {role}", "Null", {})

    def use(self, database: str) -> None:
        if self._database != database:
            self.query(f"USE {identifier(database)}", "Null", {})
            self._database = database

    def set(self, wanted: Mapping[str, str]) -> None:
        """Raises BadStatement, EngineError."""
        for name in wanted:
            if not _NAME.fullmatch(name):
                raise BadStatement(115, "UNKNOWN_SETTING", f"{name[:64]!r} is no name of a setting")
        changes = [f"{k} = {v if _INTEGER.fullmatch(v) else literal(v)}" for k, v in wanted.items() if self.settings.get(k) != v]
        changes += [f"{name} = DEFAULT" for name in self.settings.keys() - wanted.keys()]
        if changes:
            self.broken = True  # until all of them are in force; and `readonly` lets none be changed any more
            self.query(f"SET {', '.join(changes)}", "Null", {})
            self.settings, self.broken = dict(wanted), "readonly" in wanted

    def query(self, sql: str, form: str, params: Mapping[str, str]) -> Any:
        """Raises EngineError."""
        try:
            return self._connection.query(sql, form, params=dict(params) or None)
        except Exception as e:  # chdb.ChdbError, which is imported only by the engine; whatever it is, the client gets it as an answer
            self.broken = True
            quotes_data = isinstance(e, UnicodeDecodeError)  # the message quotes data that is no text
            raise EngineError(e.object.decode("utf-8", "replace") if quotes_data else str(e) or NOT_TEXT) from e

    def close(self) -> None:
        self._connection.close()
