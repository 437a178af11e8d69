"""ClickHouse over HTTP, for our own processes: select, command, insert. The only client in the rooms; other programs use theirs.

Why not `clickhouse-connect`: a query of one row costs it more than twice the processor time, the first query of a process ten times
(figures in the room's README, Decisions); and inserts need a membership check before each attempt (K8), which `before_try` is.
Only the local engine knows fences (K8), which `fences` says.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import re
import select
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

import orjson

from events.process.settings import Settings

logger = logging.getLogger(__name__)
ANSWER_S_MAX = 60.0
"""Longest one request may take; the engine ends its statements earlier."""
_BREATH_S = 0.1


class ClickHouseError(Exception):
    """ClickHouse refused. `code` is its number for why (0 = unknown)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ClickHouseUnavailable(Exception):
    """No answer in time. Transient: nothing is known of the statement's fate."""


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    written_rows: int


class ClickHouse:
    """Threads share one; each has its own connection. What may be said twice is tried again for `patience_s`, while nobody answers.
    `before_try` runs before each attempt: a writer that may have lost its right to write ends there (K8)."""

    def __init__(
        self,
        settings: Settings,
        database: str = "",
        *,
        patience_s: float = 30.0,
        answer_s_max: float = ANSWER_S_MAX,
        before_try: Callable[[], None] = lambda: None,
    ) -> None:
        url = urlsplit(settings.clickhouse)
        self._secure, self._host = url.scheme == "https", url.hostname or "127.0.0.1"
        self._port, self._path = url.port or (8443 if self._secure else 8123), url.path or "/"
        self.database = database or settings.clickhouse_database
        self.patience_s, self._answer_s_max, self._before_try = patience_s, answer_s_max, before_try
        credentials = f"{settings.clickhouse_user}:{settings.clickhouse_password.get_secret_value()}"
        self._headers = (
            {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}
            if settings.clickhouse_password.get_secret_value()
            else {}
        )
        if not self._headers and settings.clickhouse_user != "default":
            self._headers = {"X-ClickHouse-User": settings.clickhouse_user}
        self._local = threading.local()
        self._fences: bool | None = None

    @property
    def fences(self) -> bool:
        """True when the server shuts out older owners itself."""
        if self._fences is None:
            response = self._patiently(lambda: self._once("GET", "/ping", None))
            self._fences = response[2].get("x-modelmarket-fences") == "1"
        return self._fences

    @property
    def tries(self) -> int:
        """How often this thread's last statement was said: more than once, and an earlier saying may have been taken."""
        return int(getattr(self._local, "tries", 0))

    def command(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> None:
        """DDL and the like. Repeated when the connection breaks: it must bear that (IF NOT EXISTS)."""
        self._run(sql, params, settings, fence)

    def raw(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> bytes:
        """The answer as ClickHouse wrote it; name a FORMAT."""
        return self._run(sql, params, settings, fence).body

    def rows(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> list[dict[str, Any]]:
        """Rows as dicts; 64-bit integers are ints, Decimals and dates text, bytes that are no text are
        replaced (take `hex`). Bound the result with LIMIT."""
        quote = {"output_format_json_quote_64bit_integers": 0, "output_format_json_validate_utf8": 1, **(settings or {})}
        body = self._run(sql + "\nFORMAT JSONEachRow", params, quote, fence).body
        return [orjson.loads(line) for line in body.splitlines()]

    def value(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> Any:
        """The first column of the only row."""
        (row,) = self.rows(sql, params, settings, fence)
        return next(iter(row.values()))

    def insert(
        self, sql: str, body: bytes | Sequence[bytes], settings: Mapping[str, object] | None = None, fence: str = "", token: str = ""
    ) -> int:
        """`INSERT … FORMAT x` and its rows; returns how many were written. With a `token` a broken connection is tried again: the
        server takes the same token once. Raises ClickHouseError, ClickHouseUnavailable."""
        data = body if isinstance(body, bytes) else b"".join(body)
        arguments = dict(settings or {}) | ({"insert_deduplication_token": token} if token else {})
        return self._run(sql, None, arguments, fence, data, again=bool(token)).written_rows

    def insert_rows(self, table: str, rows: Sequence[Mapping[str, object]], fence: str = "", token: str = "") -> int:
        """A few rows from Python values (JSONEachRow); missing columns take their default."""
        lines = b"\n".join(json.dumps(r, separators=(",", ":"), ensure_ascii=False).encode() for r in rows)
        return self.insert(f"INSERT INTO {table} FORMAT JSONEachRow", lines, {"date_time_input_format": "best_effort"}, fence, token)

    def close(self) -> None:
        """This thread's connection."""
        self._drop()

    # --- one request

    def _run(
        self,
        sql: str,
        params: Mapping[str, object] | None,
        settings: Mapping[str, object] | None,
        fence: str,
        data: bytes | None = None,
        again: bool = True,
    ) -> Answer:
        arguments: dict[str, str] = {"database": self.database}
        arguments |= {f"param_{k}": _parameter(v) for k, v in (params or {}).items()}
        arguments |= {k: _text(v) for k, v in (settings or {}).items()}
        if fence and self.fences:
            arguments["fence"] = fence
        if data is None:
            body = sql.encode()
        else:
            arguments["query"], body = sql, data
        target = self._path + "?" + urlencode(arguments)
        status, answer, headers = self._patiently(lambda: self._once("POST", target, body), again)
        if status != 200:
            text = answer.decode("utf-8", "replace")
            code = headers.get("x-clickhouse-exception-code") or (re.search(r"Code: (\d+)", text) or [0, 0])[1]
            if status == 503:
                raise ClickHouseUnavailable(text[:500])
            raise ClickHouseError(int(code), text[:2000])
        summary = json.loads(headers.get("x-clickhouse-summary", "{}"))
        return Answer(answer, int(summary.get("written_rows", 0)))

    def _patiently(self, call: Any, again: bool = True) -> tuple[int, bytes, dict[str, str]]:
        end, self._local.tries = time.monotonic() + self.patience_s, 0
        while True:
            self._before_try()
            self._local.tries += 1
            try:
                return call()
            except (OSError, http.client.HTTPException) as e:
                self._drop()
                refused = isinstance(e, ConnectionRefusedError)  # never reached anybody
                if time.monotonic() > end or not (again or refused):
                    raise ClickHouseUnavailable(f"{self._host}:{self._port}: {type(e).__name__}: {e}") from e
                time.sleep(_BREATH_S)

    def _once(self, method: str, target: str, body: bytes | None) -> tuple[int, bytes, dict[str, str]]:
        connection = self._connection()
        connection.request(method, target, body, self._headers)
        response = connection.getresponse()
        answer = response.read()
        return response.status, answer, {k.lower(): v for k, v in response.getheaders()}

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None and connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            self._drop()  # readable without a question: the server closed it while it was idle
            connection = None
        if connection is None:
            if self._secure:
                connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._answer_s_max, context=ssl.create_default_context()
                )
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=self._answer_s_max)
            connection.blocksize = 1 << 20
            self._local.connection = connection
        return connection

    def _drop(self) -> None:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\0": "\\0"}


def _parameter(value: object) -> str:
    """A query parameter's text: scalars escaped as in TSV, lists as array literals."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_element(v) for v in cast(Sequence[object], value)) + "]"
    return "".join(_ESCAPES.get(c, c) for c in str(value))


def _element(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t") + "'"
    return _parameter(value)
