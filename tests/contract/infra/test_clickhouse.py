"""The ClickHouse endpoint, tested with the official client: what programs need works, and forbidden statements are refused."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
import lz4.frame
import pytest
import zstandard
from clickhouse_connect.driver.exceptions import DatabaseError

from events.process.http_server import HEADERS_BYTES_MAX
from events.process.settings import Settings
from infra.clickhouse_local.engine import READERS
from projections.ingest.clickhouse import ClickHouse, ClickHouseError, ClickHouseUnavailable
from tests.support.clickhouse.block_reader import read_back
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess

pytestmark = pytest.mark.engine

ROWS = 200_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    process = ClickHouseProcess(tmp_path_factory.mktemp("engine"))
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def official(engine: ClickHouseProcess) -> Iterator[Any]:
    client = as_official(engine)
    yield client
    client.close()


def as_official(engine: ClickHouseProcess, database: str = "market") -> Any:
    return clickhouse_connect.get_client(
        host="127.0.0.1",
        port=engine.port,
        username="operator",
        password=engine.password(),
        database=database,
        autogenerate_session_id=False,
    )


@pytest.fixture
def ours(engine: ClickHouseProcess) -> ClickHouse:
    return ClickHouse(engine.settings)


def post(
    engine: ClickHouseProcess, body: bytes, headers: dict[str, str] | None = None, **arguments: str
) -> tuple[int, bytes, dict[str, str]]:
    url = f"http://127.0.0.1:{engine.port}/?{urlencode(arguments)}"
    given = headers or {}
    who = {} if "X-ClickHouse-User" in given else {"X-ClickHouse-User": "operator", "X-ClickHouse-Key": engine.password()}
    request = urllib.request.Request(url, data=body, headers={**who, **given}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as r:
            return r.status, r.read(), {k.lower(): v for k, v in r.headers.items()}
    except urllib.error.HTTPError as e:
        return e.code, e.read(), {k.lower(): v for k, v in e.headers.items()}


def test_the_official_client_creates_inserts_and_reads_back_every_value(official: Any) -> None:
    official.command(
        "CREATE TABLE everything (i Int64, s String, f Float64, d DateTime64(6, 'UTC'), m Map(String, String), a Array(UInt32)) ENGINE MergeTree ORDER BY i"
    )
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    rows = [[i, f"it's \\ {i}\n\t", i / 3, when, {"k": str(i)}, [i, i + 1]] for i in range(100)]
    summary = official.insert("everything", rows, column_names=["i", "s", "f", "d", "m", "a"])
    assert summary.written_rows == 100
    back = official.query("SELECT i, s, f, d, m, a FROM everything ORDER BY i").result_rows
    assert [[i, s, f, d.replace(tzinfo=UTC), m, a] for i, s, f, d, m, a in back] == rows  # naive = UTC, the client's habit


def test_the_official_client_binds_parameters_on_the_server(official: Any) -> None:
    hostile = "it's \\ \t \n {x:String} '; DROP TABLE everything --"
    row = official.query(
        "SELECT {s:String}, {n:Int64}, {a:Array(String)}", parameters={"s": hostile, "n": -5, "a": ["x'y", "\\"]}
    ).result_rows[0]
    assert row == (hostile, -5, ["x'y", "\\"])


def test_the_official_client_streams_blocks_and_inserts_compressed_bodies_whole(official: Any) -> None:
    official.command("CREATE TABLE many (n UInt64, s String) ENGINE MergeTree ORDER BY n")
    for codec in (False, "lz4", "zstd", "gzip"):
        official.command("TRUNCATE TABLE many")
        client_rows = [[n, "x" * (n % 50)] for n in range(ROWS)]
        context = official.create_insert_context("many", data=client_rows)
        context.compression = codec or None
        assert official.insert(context=context).written_rows == ROWS
        with official.query_row_block_stream("SELECT n FROM many ORDER BY n", settings={"max_block_size": 10_000}) as stream:
            assert sum(row[0] for block in stream for row in block) == ROWS * (ROWS - 1) // 2


def test_the_official_client_gets_clickhouses_own_error(official: Any) -> None:
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        official.query("SELECT * FROM nowhere")
    with pytest.raises(DatabaseError, match="SYNTAX_ERROR"):
        official.command("SELEKT 1")


@pytest.mark.parametrize("form", ["JSONEachRow", "TabSeparated", "RowBinaryWithNamesAndTypes"])
def test_a_statement_that_fails_half_way_leaves_nothing_to_the_next(engine: ClickHouseProcess, form: str) -> None:
    fails = f"SELECT number, throwIf(number = 3) FROM numbers(10) SETTINGS max_block_size = 1, max_threads = 1 FORMAT {form}".encode()
    for _ in range(3):
        assert {post(engine, fails)[2].get("x-clickhouse-exception-code") for _ in range(2 * READERS)} == {"395"}
        assert {post(engine, b"SELECT 1")[1] for _ in range(2 * READERS)} == {b"1\n"}


def test_a_database_is_chosen_per_request_and_never_leaks_into_the_next(engine: ClickHouseProcess, official: Any) -> None:
    official.command("CREATE DATABASE IF NOT EXISTS other")
    other = as_official(engine, "other")
    for _ in range(20):
        assert other.query("SELECT currentDatabase()").result_rows == [("other",)]
        assert official.query("SELECT currentDatabase()").result_rows == [("market",)]
    other.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM /* x */ File ('/etc/passwd')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV')",
        "INSERT INTO FUNCTION file('/tmp/x', 'CSV', 'a Int8') SELECT 1",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "SELECT * FROM executable('id', 'CSV', 'a String')",
    ],
)
def test_no_statement_reaches_outside_the_tables(engine: ClickHouseProcess, sql: str) -> None:
    status, body, headers = post(engine, sql.encode())
    assert (status, headers["x-clickhouse-exception-code"]) == (403, "497"), body


def test_keywords_in_literals_are_no_syntax(engine: ClickHouseProcess) -> None:
    status, body, _ = post(
        engine,
        b"SELECT 'file(x) FORMAT CSV; SETTINGS a=1 -- \\' ; url(', `a` FROM (SELECT 1 AS `a`) /* ; */ -- ; \n FORMAT JSONCompactEachRow",
    )
    assert (status, json.loads(body)) == (200, ["file(x) FORMAT CSV; SETTINGS a=1 -- ' ; url(", 1])


@pytest.mark.parametrize("name", ["max_threads=1, readonly", "max threads", "a'b", "x;y", ""])
def test_a_setting_cannot_inject_sql(engine: ClickHouseProcess, name: str) -> None:
    status, _, headers = post(engine, b"SELECT 1", None, **{name: "1"})
    assert (status, headers["x-clickhouse-exception-code"]) == (400, "115")


def test_a_settings_value_cannot_inject_sql(engine: ClickHouseProcess) -> None:
    status, _, _ = post(engine, b"SELECT getSetting('log_comment')", log_comment="a', max_threads='1")
    assert status == 200
    _, body, _ = post(
        engine, b"SELECT getSetting('log_comment'), getSetting('max_threads')", log_comment="a', max_threads='7", max_threads="3"
    )
    assert body == b"a\\', max_threads=\\'7\t3\n"


def test_settings_reach_every_kind_of_statement(engine: ClickHouseProcess) -> None:
    assert post(engine, b"SELECT getSetting('max_threads') SETTINGS max_block_size=10 FORMAT TSV", max_threads="1")[1] == b"1\n"
    assert post(engine, b"SELECT getSetting('max_threads') FORMAT TSV SETTINGS max_block_size=10", max_threads="1")[0] in (200, 400)
    assert (
        post(engine, b"CREATE TABLE set1 (a UInt8) ENGINE MergeTree ORDER BY a SETTINGS index_granularity=1024", mutations_sync="2")[0]
        == 200
    )
    assert post(engine, b"INSERT INTO set1 SELECT 1", max_threads="1")[0] == 200
    assert post(engine, b"INSERT INTO set1 VALUES (2), (3)", insert_deduplication_token="t")[0] == 200
    assert post(engine, b"ALTER TABLE set1 DELETE WHERE a = 1", mutations_sync="2")[0] == 200
    assert post(engine, b"SELECT count() FROM set1")[1] == b"2\n"


def test_only_one_statement_a_request(engine: ClickHouseProcess) -> None:
    assert post(engine, b"SELECT 1; SELECT 2")[2]["x-clickhouse-exception-code"] == "62"
    assert post(engine, b"SELECT 1;")[1] == b"1\n"


def test_get_only_reads(engine: ClickHouseProcess) -> None:
    base = f"http://127.0.0.1:{engine.port}/?user=operator&password={engine.password()}&"
    assert urllib.request.urlopen(base + urlencode({"query": "SELECT 7"}), timeout=10).read() == b"7\n"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(base + urlencode({"query": "CREATE TABLE by_get (a Int8) ENGINE Memory"}), timeout=10)
    assert refused.value.code == 403


def test_written_rows_counts_rows_written_not_rows_read(engine: ClickHouseProcess) -> None:
    post(engine, b"CREATE TABLE written (a UInt64) ENGINE MergeTree ORDER BY a")
    csv = b"".join(b"%d\n" % i for i in range(1000))

    def count(sql: str, body: bytes = b"") -> int:
        status, text, headers = post(engine, body, query=sql)
        assert status == 200, text
        return int(json.loads(headers["x-clickhouse-summary"])["written_rows"])

    assert count("INSERT INTO written FORMAT CSV", csv) == 1000
    assert count("INSERT INTO written (a) SELECT a FROM input('a UInt64') WHERE a < 10 FORMAT CSV", csv) == 10
    assert count("INSERT INTO written SELECT number FROM numbers(7)") == 7
    assert count("INSERT INTO written VALUES (1), (2)") == 2
    assert count("INSERT INTO written FORMAT CSV") == 0


def test_several_compressed_frames_arrive_whole(engine: ClickHouseProcess) -> None:
    post(engine, b"CREATE TABLE frames (a UInt64) ENGINE MergeTree ORDER BY a")
    half = [b"".join(b"%d\n" % i for i in range(k * 70_000, (k + 1) * 70_000)) for k in range(2)]
    codecs = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress, "lz4": lz4.frame.compress}
    for name, compress in codecs.items():
        post(engine, b"TRUNCATE TABLE frames")
        status, text, _ = post(engine, b"".join(map(compress, half)), {"Content-Encoding": name}, query="INSERT INTO frames FORMAT CSV")
        assert status == 200, text
        assert post(engine, b"SELECT count(), uniqExact(a), max(a) FROM frames")[1] == b"140000\t140000\t139999\n"
        cut = compress(half[0])[:-20]
        status, _, _ = post(engine, cut, {"Content-Encoding": name}, query="INSERT INTO frames FORMAT CSV")
        assert status == 400
        assert post(engine, b"SELECT count() FROM frames")[1] == b"140000\n"


def test_answers_and_errors_are_compressed_when_asked(engine: ClickHouseProcess) -> None:
    status, body, _ = post(engine, b"SELECT number, repeat('x', 50) FROM numbers(50000)", compress="1")
    blocks = read_back(body)
    assert (status, len(blocks)) == (200, 3) and b"".join(blocks).count(b"x" * 50 + b"\n") == 50_000
    for fails, code in ((b"SELECT * FROM nowhere", "60"), (b"SELEKT 1", "62"), (b"", "62"), (b"SELECT throwIf(1)", "395")):
        status, body, headers = post(engine, fails, compress="1")
        assert (status >= 400, headers["x-clickhouse-exception-code"]) == (True, code)
        assert b"".join(read_back(body)).startswith(f"Code: {code}. DB::Exception: ".encode())
        assert post(engine, fails, compress="0")[1].startswith(f"Code: {code}. DB::Exception: ".encode())
    refused = {"X-ClickHouse-User": "operator", "X-ClickHouse-Key": "wrong"}
    assert post(engine, b"SELECT 1", refused, compress="1")[1].startswith(b"Code: 516. DB::Exception: ")
    assert post(engine, b"CREATE TABLE asked (a Int8) ENGINE = Memory", compress="1")[:2] == (200, b"")


def test_a_compression_bomb_is_refused(engine: ClickHouseProcess) -> None:
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(700 << 20))
    status, _, _ = post(engine, bomb, {"Content-Encoding": "zstd"}, query="INSERT INTO frames FORMAT CSV")
    assert status == 413


def test_a_token_inserts_once_even_after_kill_9(tmp_path: Path) -> None:
    process = ClickHouseProcess(tmp_path)
    process.start()
    client = ClickHouse(process.settings)
    client.command("CREATE TABLE once (a UInt64) ENGINE MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window=1000")
    sql = "INSERT INTO once (a) SELECT a FROM input('a UInt64') FORMAT CSV"
    assert client.insert(sql, b"1\n2\n", token="t-1") == 2
    process.kill()
    process.start()
    client.insert(sql, b"1\n2\n", token="t-1")
    client.insert(sql, b"3\n", token="t-2")
    assert client.rows("SELECT a FROM once ORDER BY a") == [{"a": 1}, {"a": 2}, {"a": 3}]
    process.stop()


def test_an_older_owner_is_fenced_out_also_after_a_restart(tmp_path: Path) -> None:
    process = ClickHouseProcess(tmp_path)
    process.start()
    client = ClickHouse(process.settings)
    assert client.fences
    client.command("CREATE TABLE fenced (a UInt64) ENGINE MergeTree ORDER BY a")
    client.insert("INSERT INTO fenced FORMAT CSV", b"1\n", fence="usage/0:100")
    client.rows("SELECT 1", fence="usage/0:200")
    with pytest.raises(ClickHouseError) as refused:
        client.insert("INSERT INTO fenced FORMAT CSV", b"2\n", fence="usage/0:100")
    assert refused.value.code == 10001
    process.kill()
    process.start()
    with pytest.raises(ClickHouseError):
        client.insert("INSERT INTO fenced FORMAT CSV", b"2\n", fence="usage/0:199,usage/1:1")
    client.insert("INSERT INTO fenced FORMAT CSV", b"3\n", fence="usage/0:200,usage/1:1")
    assert client.value("SELECT groupArray(a) FROM (SELECT a FROM fenced ORDER BY a)") == [1, 3]
    process.stop()


def test_an_unfinished_body_inserts_nothing(engine: ClickHouseProcess, ours: ClickHouse) -> None:
    ours.command("CREATE TABLE unfinished (a UInt64) ENGINE MergeTree ORDER BY a")
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as s:
        query, who = urlencode({"query": "INSERT INTO unfinished FORMAT CSV"}), b64encode(f"operator:{engine.password()}".encode()).decode()
        s.sendall(
            f"POST /?{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {who}\r\nContent-Length: 1000\r\n\r\n1\n2\n".encode()
        )
    time.sleep(0.2)
    assert ours.value("SELECT count() FROM unfinished") == 0


def test_a_password_is_always_asked_for_and_may_be_set(tmp_path: Path) -> None:
    process = ClickHouseProcess(tmp_path, clickhouse_user="operator", clickhouse_password="s3cret")
    process.start()
    assert ClickHouse(process.settings).value("SELECT 1") == 1
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=process.port, username="operator", password="s3cret", autogenerate_session_id=False
    )
    assert client.query("SELECT 1").result_rows == [(1,)]
    client.close()
    for user, password in (("operator", "s3cre"), ("operator", ""), ("default", ""), ("", ""), ("bills", "s3cret"), ("loader", "s3cret")):
        assert post(process, b"SELECT 1", {"X-ClickHouse-User": user, "X-ClickHouse-Key": password})[0] in (403, 503), user
    process.stop()


def test_sigterm_ends_the_engine_cleanly_and_its_folder_opens_again(tmp_path: Path) -> None:
    process = ClickHouseProcess(tmp_path)
    process.start()
    ClickHouse(process.settings).command("CREATE TABLE kept (a UInt64) ENGINE MergeTree ORDER BY a")
    assert process.stop() == 0
    process.start()
    assert ClickHouse(process.settings).rows("SHOW TABLES") == [{"name": "kept"}]
    process.stop()


def test_our_client_binds_parameters_safely(ours: ClickHouse) -> None:
    hostile = "it's \\ \t \n '; DROP --"
    assert ours.rows(
        "SELECT {s:String} AS s, {a:Array(String)} AS a, {n:UInt64} AS n", {"s": hostile, "a": [hostile, "b"], "n": 2**63}
    ) == [{"s": hostile, "a": [hostile, "b"], "n": 2**63}]


def test_parameters_too_long_for_a_url_arrive_as_a_form(ours: ClickHouse) -> None:
    hostile = "it's \\ \t \r\n\r\n--x; DROP --é"
    row = ours.rows("SELECT arraySum({a:Array(Int64)}) AS a, {s:String} AS s", {"a": list(range(10_000)), "s": hostile})
    assert row == [{"a": 49_995_000, "s": hostile}]


def test_a_form_with_a_file_or_without_a_field_is_refused(engine: ClickHouseProcess) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    file = b'--b\r\nContent-Disposition: form-data; name="t"; filename="t"\r\n\r\n1\r\n--b--\r\n'
    for body in (file, b"SELECT 1", b"--b", b"--b--\r\n"):
        assert post(engine, body, kind, query="SELECT 1")[0] == 400
    assert post(engine, bytes(2 << 20), kind, query="SELECT 1")[0] == 413


class BreaksConnections:
    """Between a client and the engine: resets a connection when the engine has begun to answer a statement with MARKED in it."""

    def __init__(self, port: int, times: int) -> None:
        self._port, self._times, self.arrived = port, times, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._relay, args=(self._listener.accept()[0],), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server, contextlib.suppress(OSError):
            breaks = False
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    piece = ready.recv(1 << 16)
                    if not piece:
                        return
                    if ready is client and b"MARKED" in piece:
                        self.arrived += 1
                        breaks = self.arrived <= self._times
                    if ready is server and breaks:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return
                    (server if ready is client else client).sendall(piece)


@pytest.fixture
def broken(engine: ClickHouseProcess) -> Iterator[Callable[[int], BreaksConnections]]:
    made = list[BreaksConnections]()

    def new(times: int) -> BreaksConnections:
        made.append(BreaksConnections(engine.port, times))
        return made[-1]

    yield new
    for proxy in made:
        proxy.close()


def through(engine: ClickHouseProcess, proxy: BreaksConnections, before_try: Callable[[], None] = lambda: None) -> ClickHouse:
    settings = Settings.model_validate({"clickhouse_url": f"http://127.0.0.1:{proxy.port}", "clickhouse_password": engine.password()})
    return ClickHouse(settings, patience_s=10, before_try=before_try)


def test_an_insert_without_a_token_is_sent_once_whether_or_not_it_succeeds(
    engine: ClickHouseProcess, ours: ClickHouse, broken: Callable[[int], BreaksConnections]
) -> None:
    ours.command("CREATE TABLE sent_once (a UInt64, s String) ENGINE MergeTree ORDER BY a")
    proxy = broken(1)
    with pytest.raises(ClickHouseUnavailable):
        through(engine, proxy).insert("INSERT INTO sent_once FORMAT CSV", b"1,MARKED\n")
    assert proxy.arrived == 1
    assert ours.value("SELECT count() FROM sent_once") == 1


def test_an_insert_with_a_token_is_sent_again_and_each_time_asks_whether_it_may(
    engine: ClickHouseProcess, ours: ClickHouse, broken: Callable[[int], BreaksConnections]
) -> None:
    ours.command(
        "CREATE TABLE sent_again (a UInt64, s String) ENGINE MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window=1000"
    )
    proxy, asked = broken(2), list[int]()
    client = through(engine, proxy, lambda: asked.append(proxy.arrived))
    client.insert("INSERT INTO sent_again FORMAT CSV", b"1,MARKED\n", token="t-again")
    assert (proxy.arrived, client.tries, asked[-3:]) == (3, 3, [0, 1, 2])
    assert ours.value("SELECT count() FROM sent_again") == 1


class NoMember(Exception):
    pass


def test_a_fenced_out_client_sends_nothing_again(
    engine: ClickHouseProcess, ours: ClickHouse, broken: Callable[[int], BreaksConnections]
) -> None:
    ours.command("CREATE TABLE lost (a UInt64, s String) ENGINE MergeTree ORDER BY a")
    proxy = broken(9)

    def ensure_member() -> None:
        if proxy.arrived:
            raise NoMember

    for statement in ("INSERT INTO lost SELECT 1, 'MARKED'", "SELECT 'MARKED'"):
        proxy.arrived = 0
        with pytest.raises(NoMember):
            through(engine, proxy, ensure_member).command(statement)
        assert proxy.arrived == 1


def test_a_second_engine_on_the_same_folder_is_refused(engine: ClickHouseProcess) -> None:
    env = {**os.environ, **engine.environment}
    done = subprocess.run([sys.executable, "-m", "infra.clickhouse_local.engine"], env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0 and b"another process owns this folder" in done.stderr


def test_endless_headers_are_refused(engine: ClickHouseProcess) -> None:
    """Its connections are those of `events.process.http_server`, whose own tests check the time-outs."""
    with socket.create_connection((engine.settings.host, engine.port), timeout=10) as connection:
        head = b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (HEADERS_BYTES_MAX + 1)
        connection.sendall(head)
        try:
            answer = connection.recv(1)
        except ConnectionResetError:
            answer = b""
        assert answer == b""
