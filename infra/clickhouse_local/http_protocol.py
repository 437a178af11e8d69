"""The ClickHouse HTTP protocol as an ASGI application: what the official clients send, with bounds, and errors in the form they expect.

Source: ClickHouse HTTP interface documentation; seen from clickhouse-connect 1.12 and clickhouse-jdbc 0.9. Beyond it:
`fence=key:token` (K8).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

from infra.clickhouse_local.compressed_blocks import compressed
from infra.clickhouse_local.fences import BadFence, Fenced
from infra.clickhouse_local.parsing import BadStatement, EngineError
from infra.clickhouse_local.request_bodies import BadBody, BodyTooLarge, form_fields
from infra.clickhouse_local.sign_in import Caller, KeysUnavailable, SignIn, is_foreign
from infra.clickhouse_local.tenant_turns import TenantTurns, TooManyRequests

BODY_BYTES_MAX = 256 << 20
"""Largest body as sent."""
STATEMENT_BYTES_MAX = 1 << 20
"""Largest body of an analyst: a statement and its parameters, never rows."""
BODIES_MAX = 16
"""Requests of the market's own roles that may hold a body at once; others wait before theirs is read: back-pressure on the sender."""
ADMISSION_S_MAX, PIECE_S_MAX = 30.0, 30.0
"""Longest wait of a request for its turn, and of the server for the next piece of a body."""
CANCEL_AGAIN_S = 0.5
"""A statement that had not begun when it was cancelled is cancelled again."""
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
        "cancel_http_readonly_queries_on_client_close",  # always here
        "http_write_exception_in_output_format",  # an answer is sent when it is whole
        "add_http_cors_header",
    ]
)
_STATUS = {
    60: 404,
    81: 404,
    516: 403,
    194: 401,
    497: 403,
    164: 403,
    452: 403,
    202: 503,
    241: 507,
    159: 408,
    Fenced.code: 409,
    48: 501,
    999: 503,
}
"""ClickHouse's error code → HTTP status; any other code is the client's 400, except the engine's own below."""
_COMPRESS = (b"compress=1", b"compress=true")
_NEVER_COMPRESSED = frozenset({401, 403})
"""Statuses whose text is always plain: to a client they are the answer to its sign-in, which comes before any compression."""
_OUR_FAULT = frozenset({49, 74, 75, 76, 243, 1000, 1001, 1002})  # logical error, cannot read/write/open file, no space, system exceptions

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One request, ready for the engine: what the URL says (`sql`) and the body, as it was sent."""

    caller: Caller
    sql: str
    body: list[bytes] = field(default_factory=list[bytes])
    encoding: str = ""
    format: str = "TabSeparated"
    params: dict[str, str] = field(default_factory=dict[str, str])
    settings: dict[str, str] = field(default_factory=dict[str, str])
    database: str = ""
    fence: str = ""
    only_reads: bool = False
    """The caller wants nothing else than to read."""
    id: str = ""
    """By which a read is cancelled."""


@dataclass(frozen=True, slots=True)
class Result:
    body: bytes
    format: str
    reads_only: bool
    read_rows: int
    written_rows: int
    written_bytes: int
    elapsed_ns: int


class Engine(Protocol):
    """`cancel`: nobody waits for this job any more; it ends soon if it only reads."""

    async def run(self, job: Job) -> Result: ...
    async def cancel(self, job: Job) -> None: ...


class _Refused(Exception):
    def __init__(self, status: int, code: int, text: str) -> None:
        super().__init__(text)
        self.status, self.code = status, code


class Application:
    """`own_hosts` are the names under which this server is asked; addresses are always good."""

    def __init__(self, engine: Engine, sign_in: SignIn, own_hosts: frozenset[str] = frozenset()) -> None:
        self._engine, self._sign_in, self._own_hosts = engine, sign_in, own_hosts
        self._bodies, self._turns = asyncio.Semaphore(BODIES_MAX), TenantTurns()

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
        compress = any(pair in _COMPRESS for pair in scope["query_string"].split(b"&"))
        try:
            await self._answer(scope, receive, send, query_id, compress=compress)
        except _Refused as e:
            text = str(e).encode()
            body = compressed(text) if compress and e.status not in _NEVER_COMPRESSED else text
            await _reply(send, e.status, body, {"x-clickhouse-exception-code": str(e.code), "x-clickhouse-query-id": query_id})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, query_id: str, *, compress: bool) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        if is_foreign(headers, self._own_hosts):
            raise _Refused(403, 497, "Code: 497. DB::Exception: a foreign Origin or Host is not served. (ACCESS_DENIED)")
        if scope["path"] in ("/ping", "/replicas_status"):
            await _reply(send, 200, b"Ok.\n", {"x-modelmarket-fences": "1"})
            return
        if scope["path"] != "/":
            raise _Refused(404, 1000, f"There is no handle {scope['path'][:100]}")
        query = _query(scope)
        caller = await self._authenticate(headers, query)
        try:
            async with self._turn(caller):
                body = await _body(receive, headers, STATEMENT_BYTES_MAX if caller.role == "analyst" else BODY_BYTES_MAX)
                if headers.get("content-type", "").lower().startswith("multipart/form-data"):
                    query, body = query | form_fields(body, headers["content-type"]), []
                job = _job(caller, body, headers, query, scope["method"])
                if isinstance(job, bytes):
                    await _reply(send, 200, job, {})
                    return
                result = await self._run(job, receive)
                answer = await asyncio.to_thread(compressed, result.body) if compress else result.body
        except TooManyRequests as e:
            raise _Refused(503, 202, f"Code: 202. DB::Exception: {e}. (TOO_MANY_SIMULTANEOUS_QUERIES)") from e
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
        await _reply(send, 200, answer, _success(result, query.get("query_id", query_id)))

    async def _run(self, job: Job, receive: Receive) -> Result:
        """The turn of a read whose caller has left is given back when it has ended, which is soon. What writes goes on to its end."""
        running, left = asyncio.ensure_future(self._engine.run(job)), asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({running, left}, return_when=asyncio.FIRST_COMPLETED)
            while not running.done():
                await self._engine.cancel(job)
                await asyncio.wait({running}, timeout=CANCEL_AGAIN_S)
        finally:
            left.cancel()
        return running.result()

    @asynccontextmanager
    async def _turn(self, caller: Caller) -> AsyncGenerator[None]:
        """Analysts wait for their own tenant only, and their requests take no place of the market's own."""
        if caller.role == "analyst":
            async with self._turns.turn(caller.tenant, ADMISSION_S_MAX):
                yield
            return
        try:
            async with asyncio.timeout(ADMISSION_S_MAX):
                await self._bodies.acquire()
        except TimeoutError:
            raise TooManyRequests("too many simultaneous queries") from None
        try:
            yield
        finally:
            self._bodies.release()

    async def _authenticate(self, headers: dict[str, str], query: dict[str, str]) -> Caller:
        user = headers.get("x-clickhouse-user") or query.get("user", "")
        password = headers.get("x-clickhouse-key") or query.get("password", "")
        basic = headers.get("authorization", "")
        if basic.lower().startswith("basic "):
            try:
                user, _, password = base64.b64decode(basic[6:], validate=True).decode().partition(":")
            except ValueError:
                user = password = ""
        try:
            caller = await self._sign_in.caller(user, password)
        except KeysUnavailable as e:
            raise _Refused(503, 202, f"Code: 202. DB::Exception: {e}; try again. (TOO_MANY_SIMULTANEOUS_QUERIES)") from e
        if caller is None:
            raise _Refused(403, 516, f"Code: 516. DB::Exception: {user[:64]}: Authentication failed. (AUTHENTICATION_FAILED)")
        return caller


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _status(code: int) -> int:
    return _STATUS.get(code, 500 if code in _OUR_FAULT else 400)


def _query(scope: Scope) -> dict[str, str]:
    try:
        return dict(parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, max_num_fields=URL_PAIRS_MAX, errors="strict"))
    except ValueError as e:
        raise _Refused(400, 36, f"Code: 36. DB::Exception: the URL's arguments cannot be read: {e}. (BAD_ARGUMENTS)") from e


async def _body(receive: Receive, headers: dict[str, str], bytes_max: int) -> list[bytes]:
    """All pieces of the body. An unfinished body is no statement."""
    if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > bytes_max:
        raise BodyTooLarge(f"{headers['content-length']} > {bytes_max}")
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
        if size > bytes_max:
            raise BodyTooLarge(f"> {bytes_max}")
        if piece:
            pieces.append(piece)
        more = message.get("more_body", False)
    return pieces


def _job(caller: Caller, body: list[bytes], headers: dict[str, str], query: dict[str, str], method: str) -> Job | bytes:
    """The request as a job; or the answer itself, for a request without a statement."""
    if query.get("decompress", "0") not in ("", "0"):
        raise BadBody("ClickHouse's native compression is not supported here; use Content-Encoding")
    sql, own = query.get("query", ""), caller.role != "analyst"
    reading = method in ("GET", "HEAD")
    if not sql and not body:
        if reading:
            return b"Ok.\n"
        raise BadStatement(62, "SYNTAX_ERROR", "Empty query")
    form = query.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated"
    if not re.fullmatch(r"\w{1,64}", form):
        raise BadStatement(73, "UNKNOWN_FORMAT", f"Unknown format {form[:64]!r}")
    return Job(
        caller,
        sql,
        body,
        headers.get("content-encoding", "").strip().lower(),
        form,
        {k[6:]: v for k, v in query.items() if k.startswith("param_")},
        {k: v for k, v in query.items() if k not in _TRANSPORT and not k.startswith("param_") and not (own and k == "readonly")},
        query.get("database") or headers.get("x-clickhouse-database", ""),
        query.get("fence", "") if caller.role in ("ingest", "operator") else "",
        reading or (own and query.get("readonly", "0") != "0"),
        str(uuid.uuid4()),
    )


def _success(result: Result, query_id: str) -> dict[str, str]:
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
    if result.body or result.reads_only:
        headers["x-clickhouse-format"] = result.format
    return headers


async def _reply(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    safe = {k: re.sub(r"[^\x20-\x7e]", "?", v) for k, v in headers.items()}
    pairs = [(b"x-clickhouse-timezone", b"UTC"), (b"content-length", b"%d" % len(body))]
    pairs += [(k.encode(), v.encode("ascii")) for k, v in safe.items()]
    if "x-clickhouse-format" not in safe:
        pairs.append((b"content-type", b"text/plain; charset=UTF-8"))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
