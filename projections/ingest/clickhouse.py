"""ClickHouse for our own processes: select, command, insert, each by clickhouse-connect. Nothing else in the rooms imports it.

Added to the library: statements are repeated for a limited time while the server does not answer, `before_try` runs before every
attempt (K8), and the fence of the local engine (K8), which `fences` describes. The library's own retries are off. A read is whole or an error,
and ends in the server when nobody waits for it any more; on a cluster, every statement is for all replicas (`replicas`).
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import orjson

from events.process.passwords import clickhouse_password
from events.process.settings import Settings
from projections.ingest.replicas import TIMEOUT_EXCEEDED, UNSETTLED, ddl_settings, insert_settings, on_cluster, read_settings

if TYPE_CHECKING:
    from clickhouse_connect.driver.httpclient import HttpClient
    from urllib3 import PoolManager

logger = logging.getLogger(__name__)
ANSWER_S_MAX = 60.0
"""Longest silence within one request; the engine ends its statements earlier."""
CONNECTIONS_MAX = 64
"""Connections kept open; more threads than that open theirs for one statement."""
ERROR_CHARACTERS_MAX = 2000
_BREATH_S = 0.1
ABANDONED_S_MAX = 2
"""How much longer than we wait for it the server goes on with a read whose connection it does not see closed."""
_EXCEPTION_TAG = "x-clickhouse-exception-tag"
_CODE = re.compile(r"Code: (\d+)")
T = TypeVar("T")


class ClickHouseError(Exception):
    """ClickHouse refused. `code` is its number for why (0 = unknown)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ClickHouseUnavailable(Exception):
    """No answer in time. Transient: nothing is known of the statement's fate."""


class ClickHouse:
    """Threads share one. What may be repeated is tried again for `patience_s`, while the server does not answer.
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
        self._settings, self._cluster = settings, settings.clickhouse_cluster
        self._read_settings: Mapping[str, object] = {
            # The library says `wait_end_of_query`, too: the server writes the first byte when it has the last. An error is an answer of its own.
            "http_write_exception_in_output_format": 0,
            # Whoever closes the connection has it cancelled: servers do that for readers only.
            "readonly": 2,
            "cancel_http_readonly_queries_on_client_close": 1,
            "max_execution_time": math.ceil(answer_s_max) + ABANDONED_S_MAX,
            **read_settings(self._cluster),
        }
        self.database = database or settings.clickhouse_database
        self.patience_s, self._answer_s_max, self._before_try = patience_s, answer_s_max, before_try
        self._local, self._guard = threading.local(), threading.Lock()
        self._client: HttpClient | None = None

    @cached_property
    def fences(self) -> bool:
        """True when the server shuts out older owners itself."""
        return self._patiently(self._ping).get("x-modelmarket-fences") == "1"

    @property
    def tries(self) -> int:
        """How often this thread's last statement was sent: more than once, and an earlier sending may have been taken."""
        return int(getattr(self._local, "tries", 0))

    def command(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> None:
        """DDL and the like, on a cluster for every replica. Repeated when the connection breaks: it must bear that (IF NOT EXISTS)."""
        insert = sql.lstrip().startswith("INSERT")
        of_cluster = (insert_settings if insert else ddl_settings)(self._cluster, self._answer_s_max)
        arguments, everywhere = self._arguments({**of_cluster, **(settings or {})}, fence), on_cluster(sql, self._cluster)
        self._run(lambda client: client.command(everywhere, dict(params or {}), settings=arguments), code_again=TIMEOUT_EXCEEDED)

    def raw(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> bytes:
        """The answer of a statement that reads, as ClickHouse wrote it, whole; name a FORMAT."""
        arguments = self._arguments({**self._read_settings, **(settings or {})}, fence)
        return self._run(lambda client: client.raw_query(sql, dict(params or {}), arguments))

    def rows(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> list[dict[str, Any]]:
        """Rows as dicts; 64-bit integers are ints, Decimals and dates text, bytes that are no text are
        replaced (take `hex`). Bound the result with LIMIT."""
        quote = {"output_format_json_quote_64bit_integers": 0, "output_format_json_validate_utf8": 1, **(settings or {})}
        return [orjson.loads(line) for line in self.raw(sql + "\nFORMAT JSONEachRow", params, quote, fence).splitlines()]

    def value(
        self, sql: str, params: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None, fence: str = ""
    ) -> Any:
        """The first column of the only row."""
        (row,) = self.rows(sql, params, settings, fence)
        return next(iter(row.values()))

    def insert(
        self, sql: str, body: bytes | Sequence[bytes], settings: Mapping[str, object] | None = None, fence: str = "", token: str = ""
    ) -> int:
        """`INSERT INTO … FORMAT x` and its rows; returns how many were written. With a `token` a broken connection is tried again: the
        server takes the same token once. Raises ClickHouseError, ClickHouseUnavailable."""
        data = body if isinstance(body, bytes) else b"".join(body)
        of_cluster = insert_settings(self._cluster, self._answer_s_max)
        arguments = self._arguments({**of_cluster, **(settings or {})} | ({"insert_deduplication_token": token} if token else {}), fence)
        # The library puts `INSERT INTO` and `FORMAT` around what it is given, unquoted, so that takes columns and an input(…) too.
        what, _, form = sql.removeprefix("INSERT INTO ").rpartition(" FORMAT ")
        length = {"Content-Length": str(len(data))}
        done = self._run(
            lambda c: c.raw_insert(what, None, _unrepeatable(data), arguments, form, transport_settings=length), again=bool(token)
        )
        return done.written_rows

    def insert_rows(self, table: str, rows: Sequence[Mapping[str, object]], fence: str = "", token: str = "") -> int:
        """A few rows from Python values (JSONEachRow); missing columns take their default."""
        lines = b"\n".join(json.dumps(r, separators=(",", ":"), ensure_ascii=False).encode() for r in rows)
        return self.insert(f"INSERT INTO {table} FORMAT JSONEachRow", lines, {"date_time_input_format": "best_effort"}, fence, token)

    def close(self) -> None:
        """The connections that are idle."""
        if self._client is not None:
            self._client.close_connections()

    # --- one statement

    def _arguments(self, settings: Mapping[str, object] | None, fence: str) -> dict[str, Any]:
        return {**(settings or {}), **({"fence": fence} if fence and self.fences else {})}

    def _run(self, statement: Callable[[HttpClient], T], again: bool = True, code_again: int = 0) -> T:
        client = self._patiently(self._connected)
        return self._patiently(lambda: statement(client), again, code_again)

    def _patiently(self, call: Callable[[], T], again: bool = True, code_again: int = 0) -> T:
        """`again`: it bears to be sent twice. `code_again`: with this error, too, on a cluster."""
        from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
        from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

        end, self._local.tries = time.monotonic() + self.patience_s, 0
        while True:
            try:
                return call()
            except (OperationalError, HTTPError) as e:  # no answer; or 429, 503, 504: too busy for one
                cause = e.__cause__ if isinstance(e, OperationalError) else e
                never_sent = isinstance(cause, (NewConnectionError, ConnectTimeoutError))
                if cause is None or time.monotonic() > end or not (again or never_sent):
                    raise ClickHouseUnavailable(str(e)[:ERROR_CHARACTERS_MAX]) from e
                time.sleep(_BREATH_S)
            except DatabaseError as e:
                if not self._cluster or e.code not in UNSETTLED | {code_again}:
                    raise ClickHouseError(e.code or 0, str(e)) from e
                if time.monotonic() > end or not again:
                    raise ClickHouseUnavailable(str(e)[:ERROR_CHARACTERS_MAX]) from e
                time.sleep(_BREATH_S)

    def _connected(self) -> HttpClient:
        if self._client is None:
            client = self._new_client()
            with self._guard:  # of two threads that connect at once, both use the first one's
                self._client = self._client or client
        return self._client

    def _new_client(self) -> HttpClient:
        """The library's client; it asks the server for its version and settings. Imported here: that costs 0.4 s of processor time,
        which a process that never asks ClickHouse does not pay."""
        from clickhouse_connect import common
        from clickhouse_connect.driver.httpclient import HttpClient
        from urllib3 import Timeout

        common.set_setting("max_error_size", ERROR_CHARACTERS_MAX)
        common.set_setting("send_os_user", False)
        logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)  # it warns at each attempt; we raise the last one
        url, secure = urlsplit(self._settings.clickhouse), self._settings.clickhouse.startswith("https:")
        client = HttpClient(
            "https" if secure else "http",
            url.hostname or "127.0.0.1",
            url.port or (8443 if secure else 8123),
            self._settings.clickhouse_user,
            clickhouse_password(self._settings),
            self.database,
            proxy_path=url.path,
            compress=False,
            query_retries=0,
            connect_timeout=math.ceil(self._answer_s_max),
            send_receive_timeout=math.ceil(self._answer_s_max),
            show_clickhouse_errors="scrub",
            autogenerate_session_id=False,  # one statement at a time would run in a session
            autogenerate_query_id=False,
            client_name="modelmarket",
            pool_mgr=self._new_pool(),
        )
        client.timeout = Timeout(self._answer_s_max)  # the constructor takes whole seconds only
        return client

    def _new_pool(self) -> PoolManager:
        from urllib3 import PoolManager

        attempt = self._attempt

        class Pool(PoolManager):
            """Every attempt passes here, also one that the library makes by itself."""

            def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> Any:
                return attempt(url, lambda: super(Pool, self).urlopen(method, url, redirect=False, **{**kw, "retries": False}))

        return Pool(maxsize=CONNECTIONS_MAX)

    def _attempt(self, url: str, send: Callable[[], Any]) -> Any:
        """`url` with the arguments of the statement. Raises ClickHouseError, and urllib3's ProtocolError for an answer that may not be whole."""
        from urllib3.exceptions import ProtocolError

        self._before_try()
        self._local.tries = self.tries + 1
        answer = send()
        if "content-length" not in answer.headers and answer.headers.get("transfer-encoding", "") != "chunked":
            raise ProtocolError("the answer does not say how long it is: nobody could tell whether it is whole")
        if (tag := answer.headers.get(_EXCEPTION_TAG)) and (found := answer.data.rpartition(f"__exception__\r\n{tag}".encode()))[1]:
            # It came after the first bytes, which something between us and the server may have let through before the end.
            text = found[2][:ERROR_CHARACTERS_MAX].decode("utf-8", "replace").strip()
            raise ClickHouseError(int(code[1]) if (code := _CODE.search(text)) else 0, text)
        return answer

    def _ping(self) -> Mapping[str, str]:
        client = self._connected()
        return client.http.request("GET", f"{client.url}/ping", timeout=self._answer_s_max).headers


def _unrepeatable(data: bytes) -> Generator[bytes, None, None]:
    """The library itself repeats an insert whose connection broke when it has bytes, and not when it has a generator."""
    yield data
