"""The ClickHouse HTTP protocol as an ASGI application: what the official clients send, with bounds, and errors in the form they expect.

Source: ClickHouse HTTP interface documentation; seen from clickhouse-connect 1.12. Beyond it: `fence=key:token` (K8).
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

from infra.clickhouse_local import statements
from infra.clickhouse_local.fences import BadFence, Fenced
from infra.clickhouse_local.request_bodies import DECODED_BYTES_MAX, BadBody, BodyTooLarge, decoded, form_fields
from infra.clickhouse_local.statements import BadStatement

BODY_BYTES_MAX = 256 << 20
"""Largest body as sent."""
BODIES_MAX = 16
"""Requests that may hold a body at once; others wait before theirs is read: back-pressure on the sender."""
ADMISSION_S_MAX, PIECE_S_MAX = 30.0, 30.0
"""Longest wait of a request for its turn, and of the server for the next piece of a body."""
URL_PAIRS_MAX = 512
# Arguments that clients send and that are no settings of the engine.
_TRANSPORT = frozenset(
    [
        "query",
        "database",
        "default_format",
        "session_id",
        "session_timeout",
        "session_check",
        "query_id",
        "compress",
        "decompress",
        "wait_end_of_query",
        "buffer_size",
        "role",
        "enable_http_compression",
        "http_zlib_compression_level",
        "client_protocol_version",
        "user",
        "password",
        "quota_key",
        "quota",
        "stacktrace",
        "fence",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "cancel_http_readonly_queries_on_client_close",
        "add_http_cors_header",
    ]
)
_STATUS = {60: 404, 81: 404, 516: 403, 194: 401, 497: 403, 164: 403, 202: 503, 241: 507, 159: 408, Fenced.code: 409, 48: 501, 999: 503}
"""ClickHouse's error code → HTTP status; any other code is the client's 400, except the engine's own below."""
_OUR_FAULT = frozenset({49, 74, 75, 76, 243, 1000, 1001, 1002})  # logical error, cannot read/write/open file, no space, system exceptions
_CODE = re.compile(r"Code:? (\d+)")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One statement, ready for the engine. `insert` with `body`, or `other`."""

    statement: statements.Insert | statements.Other
    body: list[bytes] = field(default_factory=list[bytes])
    encoding: str = ""
    format: str = "TabSeparated"
    params: dict[str, str] = field(default_factory=dict[str, str])
    settings: dict[str, str] = field(default_factory=dict[str, str])
    database: str = ""
    fence: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    body: bytes
    read_rows: int
    written_rows: int
    written_bytes: int
    elapsed_ns: int


class Engine(Protocol):
    async def run(self, job: Job) -> Result: ...


class _Refused(Exception):
    def __init__(self, status: int, code: int, text: str) -> None:
        super().__init__(text)
        self.status, self.code = status, code


class Application:
    """`user` and `password` are required of a request when a password is set."""

    def __init__(self, engine: Engine, user: str = "default", password: str = "") -> None:
        self._engine, self._user, self._password = engine, user, password
        self._bodies = asyncio.Semaphore(BODIES_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if scope["type"] != "http":
            return
        query_id = str(uuid.uuid4())
        try:
            await self._answer(scope, receive, send, query_id)
        except _Refused as e:
            await _reply(send, e.status, str(e).encode(), {"x-clickhouse-exception-code": str(e.code), "x-clickhouse-query-id": query_id})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, query_id: str) -> None:
        if scope["path"] in ("/ping", "/replicas_status"):
            await _reply(send, 200, b"Ok.\n", {"x-modelmarket-fences": "1"})
            return
        if scope["path"] != "/":
            raise _Refused(404, 1000, f"There is no handle {scope['path'][:100]}")
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        query = _query(scope)
        self._authenticate(headers, query)
        try:
            async with asyncio.timeout(ADMISSION_S_MAX):
                await self._bodies.acquire()
        except TimeoutError:
            raise _Refused(503, 202, "Code: 202. DB::Exception: Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)") from None
        try:
            body = await _body(receive, headers)
            if headers.get("content-type", "").lower().startswith("multipart/form-data"):
                query, body = query | form_fields(body, headers["content-type"]), []
            job = _job(body, headers, query, scope["method"])
            if isinstance(job, bytes):
                await _reply(send, 200, job, {})
                return
            result = await self._engine.run(job)
        except (BadStatement, Fenced) as e:
            raise _Refused(_status(e.code), e.code, str(e)) from e
        except BadFence as e:
            raise _Refused(400, 36, f"Code: 36. DB::Exception: {e}. (BAD_ARGUMENTS)") from e
        except BadBody as e:
            raise _Refused(400, 354, f"Code: 354. DB::Exception: {e}. (INFLATE_FAILED)") from e
        except BodyTooLarge as e:
            raise _Refused(413, 307, f"Code: 307. DB::Exception: the body is larger than allowed: {e}. (TOO_MANY_BYTES)") from e
        except EngineError as e:
            raise _Refused(_status(e.code), e.code, str(e)) from e
        finally:
            self._bodies.release()
        await _reply(send, 200, result.body, _success(job, result, query.get("query_id", query_id)))

    def _authenticate(self, headers: dict[str, str], query: dict[str, str]) -> None:
        if not self._password:
            return
        user, password = (
            headers.get("x-clickhouse-user") or query.get("user", ""),
            headers.get("x-clickhouse-key") or query.get("password", ""),
        )
        basic = headers.get("authorization", "")
        if basic.lower().startswith("basic "):
            try:
                user, _, password = base64.b64decode(basic[6:], validate=True).decode().partition(":")
            except ValueError:
                user = password = ""
        if user != self._user or not hmac.compare_digest(password.encode(), self._password.encode()):
            raise _Refused(403, 516, f"Code: 516. DB::Exception: {user[:64]}: Authentication failed. (AUTHENTICATION_FAILED)")


class EngineError(Exception):
    """An error of ClickHouse, with its `code`."""

    def __init__(self, text: str) -> None:
        found = _CODE.search(text)
        super().__init__(text)
        self.code = int(found.group(1)) if found else 1002


def _status(code: int) -> int:
    return _STATUS.get(code, 500 if code in _OUR_FAULT else 400)


def _query(scope: Scope) -> dict[str, str]:
    try:
        return dict(parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, max_num_fields=URL_PAIRS_MAX, errors="strict"))
    except ValueError as e:
        raise _Refused(400, 36, f"Code: 36. DB::Exception: the URL's arguments cannot be read: {e}. (BAD_ARGUMENTS)") from e


async def _body(receive: Receive, headers: dict[str, str]) -> list[bytes]:
    """All pieces of the body. An unfinished body is no statement."""
    if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > BODY_BYTES_MAX:
        raise BodyTooLarge(f"{headers['content-length']} > {BODY_BYTES_MAX}")
    pieces, size, more = list[bytes](), 0, True
    while more:
        try:
            async with asyncio.timeout(PIECE_S_MAX):
                message = await receive()
        except TimeoutError:
            raise _Refused(
                408, 209, f"Code: 209. DB::Exception: nothing of the body came for {PIECE_S_MAX:g} s. (SOCKET_TIMEOUT)"
            ) from None
        if message["type"] == "http.disconnect":
            raise _Refused(400, 209, "the client left in the middle of the body")
        piece = message.get("body", b"")
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise BodyTooLarge(f"> {BODY_BYTES_MAX}")
        if piece:
            pieces.append(piece)
        more = message.get("more_body", False)
    return pieces


def _job(body: list[bytes], headers: dict[str, str], query: dict[str, str], method: str) -> Job | bytes:
    """The statement as a job; or the answer itself, for a request without a statement."""
    if query.get("decompress", "0") not in ("", "0"):
        raise BadBody("ClickHouse's native compression is not supported here; use Content-Encoding")
    encoding, sql = headers.get("content-encoding", "").strip().lower(), query.get("query", "")
    reading = method in ("GET", "HEAD")
    if not sql and not body:
        if reading:
            return b"Ok.\n"
        raise BadStatement(62, "SYNTAX_ERROR", "Empty query")
    statement, body, encoding = _in_body(body, encoding) if not sql else _in_url(sql, body, encoding)
    if reading and not (isinstance(statement, statements.Other) and statement.reads_only):
        raise BadStatement(164, "READONLY", "GET only reads; use POST")
    settings = {k: v for k, v in query.items() if k not in _TRANSPORT and not k.startswith("param_")}
    statements.check_settings(settings)
    chosen = statement.format if isinstance(statement, statements.Other) else None
    form = chosen or query.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated"
    if not re.fullmatch(r"\w{1,64}", form):
        raise BadStatement(73, "UNKNOWN_FORMAT", f"Unknown format {form[:64]!r}")
    return Job(
        statement,
        body,
        encoding,
        form,
        {k[6:]: v for k, v in query.items() if k.startswith("param_")},
        settings,
        query.get("database") or headers.get("x-clickhouse-database", ""),
        query.get("fence", ""),
    )


_Parsed = tuple[statements.Insert | statements.Other, list[bytes], str]
"""The statement, the rows that come with it, and their encoding."""


def _in_body(body: list[bytes], encoding: str) -> _Parsed:
    text = b"".join(_bounded(decoded(body, encoding)))
    sql = text[: statements.HEAD_BYTES_MAX].decode("utf-8", "replace")
    statement = statements.parse(sql)
    if isinstance(statement, statements.Insert):
        return statement, [text[len(sql[: statement.data_at].encode()) :]], ""
    _check_length(len(text))
    return statement, [], ""


def _in_url(sql: str, body: list[bytes], encoding: str) -> _Parsed:
    """The body holds the rows of an INSERT … FORMAT, or goes on where the URL ends."""
    statement = statements.parse(sql)
    if isinstance(statement, statements.Insert):
        inline = sql[statement.data_at :]
        if not inline.strip():
            return statement, body, encoding
        return statement, [inline.encode(), b"\n", *_bounded(decoded(body, encoding))], ""
    rest = b"".join(_bounded(decoded(body, encoding)))
    if not rest:
        return statement, [], ""
    _check_length(len(rest))
    return statements.parse(f"{sql}\n{rest.decode('utf-8', 'replace')}"), [], ""


def _check_length(size: int) -> None:
    if size > statements.HEAD_BYTES_MAX:
        raise BadStatement(62, "SYNTAX_ERROR", f"The statement is longer than {statements.HEAD_BYTES_MAX} bytes")


def _bounded(pieces: Any) -> list[bytes]:
    out, size = list[bytes](), 0
    for piece in pieces:
        size += len(piece)
        if size > DECODED_BYTES_MAX:
            raise BodyTooLarge(f"> {DECODED_BYTES_MAX}")
        out.append(piece)
    return out


def _success(job: Job, result: Result, query_id: str) -> dict[str, str]:
    summary = {
        "read_rows": str(result.read_rows),
        "read_bytes": "0",
        "written_rows": str(result.written_rows),
        "written_bytes": str(result.written_bytes),
        "total_rows_to_read": "0",
        "result_rows": str(result.read_rows),
        "result_bytes": str(len(result.body)),
        "elapsed_ns": str(result.elapsed_ns),
    }
    headers = {"x-clickhouse-summary": json.dumps(summary), "x-clickhouse-query-id": query_id[:128]}
    if result.body or (isinstance(job.statement, statements.Other) and job.statement.reads_only):
        headers["x-clickhouse-format"] = job.format
    return headers


async def _reply(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    safe = {k: re.sub(r"[^\x20-\x7e]", "?", v) for k, v in headers.items()}
    pairs = [(b"x-clickhouse-timezone", b"UTC"), (b"content-length", b"%d" % len(body))]
    pairs += [(k.encode(), v.encode("ascii")) for k, v in safe.items()]
    if "x-clickhouse-format" not in safe:
        pairs.append((b"content-type", b"text/plain; charset=UTF-8"))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
