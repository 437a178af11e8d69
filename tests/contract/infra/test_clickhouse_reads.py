"""A read is whole or an error, whatever becomes of it in mid-stream, and ends in the server when nobody waits for it any more."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from events.process.settings import Settings
from infra.clickhouse_local.engine import READERS
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess
from tests.support.polling import eventually

pytestmark = pytest.mark.engine

ROWS = b'{"n":1}\n{"n":2}\n'
TAG = "PU1FNUFH98"
TAGGED = (
    ROWS
    + f"\r\n__exception__\r\n{TAG}\r\nCode: 395. DB::Exception: in mid-stream. (FUNCTION_THROW)\n58 {TAG}\r\n__exception__\r\n".encode()
)
SLOW = "SELECT count() AS n FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    process = ClickHouseProcess(tmp_path_factory.mktemp("engine"))
    process.start()
    yield process
    process.stop()


Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A clickhouse-server before the engine: what it is asked goes on to that, but for statements with MARKED, which it answers itself."""

    def __init__(self, engine: ClickHouseProcess, *answers: Answer) -> None:
        self.arguments = list[dict[str, str]]()
        """Of the marked statements."""
        asked, left = self.arguments, list(answers)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                query = urlsplit(self.path).query
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if b"MARKED" in body + query.encode():
                    asked.append(dict(parse_qsl(query)))
                    (left.pop(0) if len(left) > 1 else left[0])(self)
                    return
                with closing(http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)) as there:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "transfer-encoding", "connection")}
                    there.request(self.command, self.path, body, headers)
                    answer = there.getresponse()
                    text = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower().startswith("x-clickhouse"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.settings = Settings.model_validate(
            {"clickhouse_url": f"http://127.0.0.1:{self._server.server_port}", "clickhouse_password": engine.password()}
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(engine: ClickHouseProcess, *answers: Answer) -> Generator[Server]:
    server = Server(engine, *answers)
    try:
        yield server
    finally:
        server.close()


def answering(status: int, body: bytes, headers: dict[str, str], *, ends: bool = True) -> Answer:
    """`ends`: in order; else the connection is closed after these bytes, whatever was promised."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        chunked = headers.get("Transfer-Encoding") == "chunked"
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) if chunked else body)
        if chunked and ends:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = not ends

    return answer


CHUNKED = {"Transfer-Encoding": "chunked"}
UNFINISHED = {
    "a stream without its end": answering(200, ROWS, CHUNKED, ends=False),
    "fewer bytes than promised": answering(200, ROWS, {"Content-Length": "1000"}, ends=False),
    "an answer of no length": answering(200, ROWS, {"Connection": "close"}, ends=False),
}
FAILED = {
    "an error after the first rows": answering(200, TAGGED, {**CHUNKED, "X-ClickHouse-Exception-Tag": TAG}),
    "an error after the first progress": answering(200, b"Code: 395.", {"Content-Length": "10", "X-ClickHouse-Exception-Code": "395"}),
}


@pytest.mark.parametrize("answer", UNFINISHED.values(), ids=UNFINISHED)
def test_an_answer_that_breaks_off_is_asked_for_again_and_then_none(engine: ClickHouseProcess, answer: Answer) -> None:
    with serving(engine, answer) as server:
        with pytest.raises(ClickHouseUnavailable):
            ClickHouse(server.settings, patience_s=0.5).rows("SELECT 'MARKED'")
    whole = answering(200, ROWS, {"Content-Length": str(len(ROWS))})
    with serving(engine, answer, whole) as server:
        assert ClickHouse(server.settings).rows("SELECT 'MARKED'") == [{"n": 1}, {"n": 2}]
        assert len(server.arguments) == 2


@pytest.mark.parametrize("answer", FAILED.values(), ids=FAILED)
def test_an_error_in_mid_stream_is_an_error(engine: ClickHouseProcess, answer: Answer) -> None:
    with serving(engine, answer) as server:
        with pytest.raises(ClickHouseError) as failed:
            ClickHouse(server.settings).rows("SELECT 'MARKED'")
    assert failed.value.code == 395


def test_the_local_engine_answers_with_an_error_however_late_it_comes(engine: ClickHouseProcess) -> None:
    late = "SELECT number + throwIf(number = 900000, 'late') AS n FROM numbers(1000000)"
    with pytest.raises(ClickHouseError, match="late"):
        ClickHouse(engine.settings).rows(late, settings={"max_block_size": 1000, "max_threads": 1})


def test_a_read_asks_for_its_answer_whole_and_to_be_cancelled_when_nobody_waits(engine: ClickHouseProcess) -> None:
    with serving(engine, answering(200, ROWS, CHUNKED)) as server:
        ClickHouse(server.settings, answer_s_max=3).rows("SELECT 'MARKED'")
    (asked,) = server.arguments
    wanted = {"wait_end_of_query": "1", "http_write_exception_in_output_format": "0"}
    wanted |= {"readonly": "2", "cancel_http_readonly_queries_on_client_close": "1", "max_execution_time": "5"}
    assert wanted.items() <= asked.items()
    assert not {"select_sequential_consistency", "insert_quorum"} & asked.keys()


def test_on_a_cluster_inserts_wait_for_a_majority_and_reads_for_what_it_has(engine: ClickHouseProcess) -> None:
    def refusing(code: int) -> Answer:
        return answering(
            500, b"Code: %d." % code, {"Content-Length": str(len(b"Code: %d." % code)), "X-ClickHouse-Exception-Code": str(code)}
        )

    done = answering(200, ROWS, CHUNKED)
    with serving(engine, refusing(286), refusing(319), done, refusing(289), done, refusing(319)) as server:
        settings = server.settings.model_copy(update={"clickhouse_cluster": "c"})
        clickhouse = ClickHouse(settings, answer_s_max=3, patience_s=5)
        clickhouse.insert("INSERT INTO t FORMAT CSV", b"'MARKED'\n", token="t")
        assert clickhouse.tries == 3
        assert clickhouse.rows("SELECT 'MARKED'") == [{"n": 1}, {"n": 2}]
        with pytest.raises(ClickHouseUnavailable):  # whether it was taken is not known, and it does not bear to be sent twice
            clickhouse.insert("INSERT INTO t FORMAT CSV", b"'MARKED'\n")
        assert clickhouse.tries == 1
    inserted, read = server.arguments[0], server.arguments[3]
    quorum = {"insert_quorum": "auto", "insert_quorum_parallel": "0", "insert_quorum_timeout": "2400", "insert_deduplication_token": "t"}
    assert quorum.items() <= inserted.items()
    assert read["select_sequential_consistency"] == "1"


def running(engine: ClickHouseProcess) -> int:
    sql = "SELECT toInt64(count()) AS n FROM system.processes WHERE query LIKE '%1000000000000%' AND query NOT LIKE '%system.processes%'"
    who = engine.settings.model_copy(update={"clickhouse_user": "ingest"})  # whose statements have threads of their own
    return int(ClickHouse(who).value(sql))


def test_what_nobody_waits_for_any_more_ends_and_takes_nobodys_turn(engine: ClickHouseProcess) -> None:
    """Twice as many callers as there are threads leave; without it each thread would be busy for a minute."""
    who = urlencode({"user": "operator", "password": engine.password(), "database": "market"})
    request = f"POST /?{who} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(SLOW)}\r\n\r\n{SLOW}".encode()
    callers = [socket.create_connection(("127.0.0.1", engine.port)) for _ in range(2 * READERS)]
    for caller in callers:
        caller.sendall(request)
    eventually(lambda: running(engine) == READERS, "all threads are busy")
    for caller in callers:
        caller.close()
    began = time.monotonic()
    assert ClickHouse(engine.settings, answer_s_max=30).value("SELECT 1 AS n") == 1
    assert time.monotonic() - began < 20
    eventually(lambda: running(engine) == 0, "they have ended", 20)


def test_a_client_that_gives_up_leaves_nothing_running(engine: ClickHouseProcess) -> None:
    with pytest.raises(ClickHouseUnavailable):
        ClickHouse(engine.settings, patience_s=0, answer_s_max=1).rows(SLOW)
    eventually(lambda: running(engine) == 0, "it has ended", 20)


def test_a_caller_that_only_reads_cannot_write(engine: ClickHouseProcess) -> None:
    with pytest.raises(ClickHouseError) as refused:
        ClickHouse(engine.settings).raw("CREATE TABLE never (a Int8) ENGINE = MergeTree ORDER BY a")
    assert refused.value.code == 164
