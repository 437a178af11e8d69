"""The ClickHouse endpoint with a hostile tenant: it reads its own rows and nothing else of this machine, with any statement."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import clickhouse_connect
import pytest

from infra.clickhouse_local.grants import OWN_ROLES, OWN_ROWS, VIEWS, server_analyst, server_role_user, server_statements, users_xml
from infra.clickhouse_local.http_protocol import STATEMENT_BYTES_MAX
from infra.clickhouse_local.tenant_turns import REQUESTS_MAX
from projections.ingest.clickhouse import ClickHouse
from projections.query_api.keys_from_log import KeysFromLog
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess
from tests.support.clickhouse.two_tenants import AT, KEYS, TENANTS, fill_tables, issued, query_api
from tests.support.polling import eventually

pytestmark = pytest.mark.engine

ACCOUNTS = KeysFromLog()
"""What the query API knows of keys; a test revokes one."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    process = ClickHouseProcess(tmp_path_factory.mktemp("engine"))
    process.start()
    fill_tables(process.settings)
    with query_api(process.settings, ACCOUNTS):
        yield process
    process.stop()


Answer = tuple[int, bytes, str]


def ask(engine: ClickHouseProcess, user: str, password: str, sql: str, headers: dict[str, str] | None = None, **arguments: str) -> Answer:
    """(status, body, ClickHouse's code)"""
    who = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password, **(headers or {})}
    request = urllib.request.Request(f"http://127.0.0.1:{engine.port}/?{urlencode(arguments)}", sql.encode(), who, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as r:
            return r.status, r.read(), ""
    except urllib.error.HTTPError as e:
        return e.code, e.read(), e.headers.get("x-clickhouse-exception-code", "")


def acme(engine: ClickHouseProcess, sql: str, headers: dict[str, str] | None = None, **arguments: str) -> Answer:
    return ask(engine, "analyst", KEYS["acme"], sql, headers, **arguments)


def operator(engine: ClickHouseProcess, sql: str, **arguments: str) -> Answer:
    return ask(engine, "operator", engine.password(), sql, None, **arguments)


# --- what an analyst is for


def test_an_analyst_signs_in_with_a_read_key_and_the_official_client_and_sees_its_own_rows(engine: ClickHouseProcess) -> None:
    for tenant in TENANTS:
        client = clickhouse_connect.get_client(host="127.0.0.1", port=engine.port, username="analyst", password=KEYS[tenant], database="market",
                                               autogenerate_session_id=False)  # fmt: skip
        for table in ("usage", "usage_rows", "usage_counted", "metering_daily", "bills", "catalog", "tenants"):
            assert {row["tenant"] for row in client.query(f"SELECT tenant FROM {table}").named_results()} == {tenant}, table
        assert client.query("SELECT count(), min(tenant), max(tenant) FROM usage").result_rows == [(1, tenant, tenant)]
        assert client.query("SELECT n FROM numbers(2) AS t JOIN (SELECT count() AS n FROM usage) AS u ON 1").result_rows == [(1,), (1,)]
        assert client.query_df("SELECT tenant FROM {t:Identifier}.usage" if False else "SELECT tenant FROM market.usage")[
            "tenant"
        ].tolist() == [tenant]
        client.close()


def test_every_table_and_view_of_an_analyst_shows_no_rows_of_another_tenant(engine: ClickHouseProcess) -> None:
    for name in (*OWN_ROWS, *VIEWS):
        status, body, _ = acme(engine, f"SELECT * FROM {name} FORMAT JSONEachRow")
        assert (status, b"globex" in body) == (200, False), (name, body)
    assert b"acme" in acme(engine, "SELECT * FROM history")[1]


def test_a_key_without_scope_read_and_a_revoked_key_are_refused(engine: ClickHouseProcess) -> None:
    for key in (KEYS["caller"], "mm_nobodys", "", "x" * 500, "mm_é"):
        assert ask(engine, "analyst", key.encode().decode("latin-1"), "SELECT 1")[0] == 403
    ACCOUNTS.apply("ApiKeyIssued", issued("acme", "mm_short-lived", "read"), AT)
    assert ask(engine, "analyst", "mm_short-lived", "SELECT 1")[0] == 200
    ACCOUNTS.apply("ApiKeyRevoked", {"tenant": "acme", "key_id": "mm_short-lived"}, AT)
    end = time.monotonic() + 2.0
    while ask(engine, "analyst", "mm_short-lived", "SELECT 1")[0] == 200:
        assert time.monotonic() < end


# --- what a hostile analyst tries

READS_A_FILE = [
    "SELECT * FROM `file`('{file}', 'LineAsString')",
    "SELECT * FROM file('{file}', 'LineAsString')",
    "SELECT * FROM /* x */ File ('{file}', 'LineAsString')",
    "SELECT * FROM \"file\"('{file}', 'LineAsString')",
    "SELECT file('{file}')",
    "SELECT `file`('{file}')",
    "SELECT arrayMap(file, ['{file}'])",
    "SELECT arrayMap(x -> file(x), ['{file}'])",
    "SELECT * APPLY(file) FROM (SELECT '{file}')",
    "SELECT * APPLY(x -> file(x)) FROM (SELECT '{file}')",
    "WITH file AS f SELECT arrayMap(f, ['{file}'])",
    "FROM '{file}' SELECT *",
    "SELECT * FROM `{file}`",
    "SELECT * FROM default.`{file}`",
    "SELECT * FROM filesystem('/')",
    "SELECT * FROM format('CSV', 'a String, b String DEFAULT file(\\'{file}\\')', '1,')",
    "SELECT * FROM values('a String DEFAULT file(\\'{file}\\')', ('x')) WHERE a = file('{file}')",
    "SELECT * FROM view(SELECT file('{file}'))",
    "SELECT (SELECT * FROM `file`('{file}', 'LineAsString') LIMIT 1)",
    "SELECT 1 WHERE 'x' IN (SELECT * FROM `file`('{file}', 'LineAsString'))",
    "WITH t AS (SELECT * FROM `file`('{file}', 'LineAsString')) SELECT * FROM t",
    "SELECT 1 UNION ALL SELECT length(file('{file}'))",
    "DESCRIBE TABLE file('{file}', 'CSVWithNames')",
    "DESCRIBE (SELECT * FROM file('{file}', 'LineAsString'))",
    "EXPLAIN SELECT * FROM file('{file}', 'LineAsString')",
    "SELECT * FROM input('a String DEFAULT file(\\'{file}\\')')",
    "SELECT * FROM sqlite('{file}', 't')",
    "SELECT * FROM eval('SELECT file(\\'{file}\\')')",
]
REACHES_OUT = [
    "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')",
    "SELECT * FROM `url`('http://127.0.0.1:1/', 'CSV', 'a String')",
    "SELECT * FROM remote('127.0.0.1', 'market', 'usage')",
    "SELECT * FROM remoteSecure('127.0.0.1', 'market', 'usage')",
    "SELECT * FROM cluster('default', 'market', 'usage')",
    "SELECT * FROM s3('http://127.0.0.1:1/a/b', 'CSV', 'a String')",
    "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM executable('id', 'TSV', 'a String')",
    "SELECT * FROM python('engine')",
    "SELECT * FROM dictionary('d')",
    "SELECT dictGet('d', 'a', 1)",
    "SELECT aiGenerate('x')",
    "SELECT hasColumnInTable('127.0.0.1:1', 'default', '', 'system', 'one', 'dummy')",
]
WRITES = [
    "INSERT INTO FUNCTION `file`('{out}', 'CSV', 'a Int8') SELECT 1",
    "INSERT INTO FUNCTION file('{out}', 'CSV', 'a Int8') VALUES (1)",
    "SELECT 1 INTO OUTFILE '{out}'",
    "SELECT 1 INTO OUTFILE '{out}' AND STDOUT FORMAT CSV",
    "INSERT INTO usage FROM INFILE '{file}' FORMAT LineAsString",
    "INSERT INTO usage (tenant) VALUES ('acme')",
    "INSERT INTO usage (tenant) FORMAT CSV\nacme\n",
    "INSERT INTO usage (tenant) SELECT tenant FROM input('tenant String') FORMAT CSV\nacme\n",
    "CREATE TABLE mine (a Int8) ENGINE = Memory",
    "CREATE TABLE mine (a String) ENGINE = File(CSV, '{file}')",
    "CREATE DATABASE mine ENGINE = Filesystem('/')",
    "CREATE TABLE mine (a Int8) ENGINE = MergeTree ORDER BY a SETTINGS disk = disk(type = local, path = '{out}/')",
    "CREATE TABLE mine (a Int8) ENGINE = MergeTree ORDER BY a SETTINGS storage_policy = '{out}'",
    "CREATE DATABASE mine",
    "CREATE TEMPORARY TABLE mine (a Int8)",
    "CREATE VIEW mine AS SELECT * FROM usage",
    "CREATE MATERIALIZED VIEW mine ENGINE = Memory AS SELECT * FROM usage",
    "CREATE DICTIONARY mine (a Int8) PRIMARY KEY a SOURCE(FILE(path '{file}' format 'CSV')) LIFETIME(1) LAYOUT(FLAT())",
    "CREATE FUNCTION mine AS x -> file(x)",
    "CREATE USER mine",
    "CREATE ROW POLICY OR REPLACE p ON market.usage USING 1 TO ALL",
    "GRANT ALL ON *.* TO default",
    "ATTACH TABLE mine FROM '/' (a Int8) ENGINE = MergeTree ORDER BY a",
    "DETACH TABLE usage",
    "DROP TABLE usage",
    "TRUNCATE TABLE usage",
    "ALTER TABLE usage DELETE WHERE 1",
    "DELETE FROM usage WHERE 1",
    "OPTIMIZE TABLE usage FINAL",
    "RENAME TABLE usage TO mine",
    "EXCHANGE TABLES usage AND history_rows",
    "BACKUP TABLE usage TO File('{out}')",
    "RESTORE TABLE usage FROM File('{file}')",
    "KILL QUERY WHERE 1",
    "SYSTEM FLUSH LOGS",
    "SYSTEM SHUTDOWN",
    "SET ROLE operator",
    "SET ROLE ALL",
    "SET log_comment = 'globex'",
    "SET readonly = 0",
    "USE system",
    "EXECUTE AS default SELECT 1",
    "EXPLAIN ESTIMATE SELECT * FROM usage",
]
READS_ANOTHERS_ROWS = [
    "SELECT * FROM usage SETTINGS log_comment = 'globex'",
    "SELECT * FROM (SELECT * FROM usage SETTINGS log_comment = 'globex')",
    "SELECT * FROM usage FORMAT CSV SETTINGS log_comment = 'globex'",
    "SELECT * FROM usage WHERE tenant IN (SELECT tenant FROM usage SETTINGS additional_table_filters = {{'market.usage': '1'}})",
    "WITH t AS (SELECT * FROM usage SETTINGS log_comment = 'globex') SELECT * FROM t",
    "SELECT 1 UNION ALL (SELECT length(tenant) FROM usage SETTINGS log_comment = 'globex')",
    "SELECT * FROM view(SELECT * FROM usage SETTINGS log_comment = 'globex')",
    "DESCRIBE (SELECT * FROM usage SETTINGS log_comment = 'globex')",
    "SELECT * FROM merge('market', 'usage')",
    "SELECT * FROM merge('market', '.*')",
    "SELECT * FROM merge('system', 'processes')",
    "SELECT * FROM loop(market.usage) LIMIT 10",
    "SELECT * FROM mergeTreeIndex('market', 'usage')",
    "SELECT * FROM mergeTreeAnalyzeIndexes('market', 'usage')",
    "SELECT * FROM viewIfPermitted(SELECT * FROM usage ELSE null('tenant String'))",
    "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT * FROM usage))",
    "SELECT * FROM alerts",
    "SELECT * FROM dead_letters_rows",
    "SELECT * FROM dead_letters",
    "SELECT * FROM system.processes",
    "SELECT query FROM `system`.`processes`",
    "SELECT * FROM system.parts",
    "SELECT * FROM system.query_log",
    "SELECT * FROM system.query_cache",
    "SELECT * FROM system.errors",
    "SELECT * FROM system.stack_trace",
    "SELECT * FROM system.users",
    "SELECT * FROM system.row_policies",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM other.t",
    "SHOW PROCESSLIST",
    "SHOW GRANTS",
    "SELECT 1; SELECT * FROM usage",
    "SELECT 1 -- \n; SELECT 2",
    "SELECT 1 /* */;/* */ DROP TABLE usage",
    "SELECT 1 PARALLEL WITH SELECT 2",
]


@pytest.mark.parametrize("sql", [*READS_A_FILE, *REACHES_OUT, *WRITES, *READS_ANOTHERS_ROWS])
def test_a_hostile_analyst_is_refused(engine: ClickHouseProcess, tmp_path: Path, sql: str) -> None:
    secret, out = tmp_path / "secret.csv", tmp_path / "out"
    secret.write_text("secret-of-the-machine\n")
    before = operator(engine, "SELECT count() FROM usage")[1], operator(engine, "SHOW TABLES")[1]
    status, body, _ = acme(engine, sql.format(file=secret, out=out))
    assert status != 200, body
    assert b"globex" not in body and b"secret-of-the-machine" not in body and not out.exists()
    assert (operator(engine, "SELECT count() FROM usage")[1], operator(engine, "SHOW TABLES")[1]) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT tenant, throwIf(tenant = 'globex') FROM usage",
        "SELECT tenant FROM usage PREWHERE throwIf(tenant = 'globex') = 0",
        "SELECT tenant FROM usage_rows WHERE 1 / (tenant != 'globex') > 0",
        "SELECT tenant FROM usage FINAL",
        "SELECT tenant FROM usage SAMPLE 1",
        "SELECT groupArray(tenant) FROM usage WHERE kafka_partition IN (0, 1)",
        "SELECT count() FROM usage",
        "SELECT count(), max(kafka_partition) FROM usage",
        "SELECT tenant FROM usage WHERE tenant = 'globex' OR 1",
        "SELECT 1 WHERE ('globex',) IN (SELECT tenant FROM usage)",
        "SELECT (SELECT groupArray(query) FROM system.processes)",
        "SELECT 'x' IN system.processes",
        "SELECT getSetting('log_comment')",
        "SHOW TABLES FROM system LIKE 'x'",
        "SELECT name, total_rows FROM system.tables WHERE database = 'market' AND name LIKE 'dead%'",
    ],
)
def test_a_statement_that_is_not_refused_shows_no_rows_of_another_tenant(engine: ClickHouseProcess, sql: str) -> None:
    status, body, _ = acme(engine, sql)
    assert b"globex" not in body.replace(sql.encode(), b""), body
    if status == 200 and sql.startswith("SELECT count()"):
        assert body.split()[0] == b"1"


def test_the_catalog_of_the_engine_shows_an_analyst_the_views_and_no_sizes(engine: ClickHouseProcess) -> None:
    named = "SELECT name, total_rows, total_bytes, length(data_paths) FROM system.tables WHERE database = 'market' FORMAT JSONEachRow"
    rows = [json.loads(line) for line in acme(engine, named)[1].splitlines()]
    assert {row["name"] for row in rows} == set(VIEWS)
    assert {(row["total_rows"], row["total_bytes"], int(row["length(data_paths)"])) for row in rows} == {(None, None, 0)}
    assert acme(engine, "SELECT count() FROM system.columns WHERE table = 'usage'")[1] == b"0\n"
    assert set(acme(engine, "SHOW TABLES")[1].decode().split()) == set(VIEWS)
    assert acme(engine, "DESCRIBE usage_counted")[1].startswith(b"fact")


@pytest.mark.parametrize("form", ["", " FORMAT TSV", "\nformat CSV"])
def test_exists_says_no_of_all_that_an_analyst_has_no_right_to(engine: ClickHouseProcess, form: str) -> None:
    hidden = ("alerts", "market.dead_letters_rows", "nowhere", "default.`/etc/passwd`", "default.`/no/file`", "`FORMAT JSON`", "other.t")
    for name in (*(f"{kind} {table}" for kind in ("TABLE", "VIEW") for table in hidden), "DATABASE default", "DATABASE nowhere"):
        assert acme(engine, f"EXISTS {name}{form}") == (200, b"0\n", ""), name
    assert acme(engine, f"EXISTS usage_counted{form}") == acme(engine, f"EXISTS VIEW market.bills{form}") == (200, b"1\n", "")
    assert acme(engine, f"EXISTS TABLE alerts SETTINGS log_comment = 'globex'{form}")[0] != 200


@pytest.mark.parametrize(
    "name", ["log_comment", "additional_table_filters", "readonly", "dialect", "format_schema", "output_format_schema", "final1"]
)
def test_an_analysts_settings_in_the_url_are_those_of_a_short_list(engine: ClickHouseProcess, name: str) -> None:
    status, _, code = acme(engine, "SELECT tenant FROM usage", None, **{name: "globex"})
    assert (status, code) == (403, "452")
    assert acme(engine, "SELECT tenant FROM usage", None, date_time_input_format="best_effort")[1] == b"acme\n"


@pytest.mark.parametrize("user", ["analyst", "bills", "operator"])
def test_a_parameter_cannot_name_a_function(engine: ClickHouseProcess, tmp_path: Path, user: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret-of-the-machine")
    password = KEYS["acme"] if user == "analyst" else engine.password(user)
    status, body, _ = ask(engine, user, password, f"SELECT arrayMap({{f:Identifier}}, ['{secret}'])", None, param_f="file")
    assert status == 403 and b"secret-of" not in body


def test_a_statement_of_any_depth_and_length_gets_an_answer(engine: ClickHouseProcess) -> None:
    for depth in (100, 900, 5000):
        assert acme(engine, "SELECT " + "(" * depth + "1" + ")" * depth)[0] in (200, 400)
        assert acme(engine, "SELECT * FROM (" * depth + "SELECT 1" + ")" * depth)[0] in (200, 400)
        assert acme(engine, "SELECT " + "[" * depth + "1" + "]" * depth)[0] in (200, 400)
    assert acme(engine, "SELECT '" + "x" * (300 << 10) + "'")[0] == 400
    assert acme(engine, "SELECT '\0'")[0] == 400
    assert acme(engine, "SELECT 1")[1] == b"1\n"


@pytest.mark.parametrize("table", ["usage", "processes", "market.usage"])
def test_a_parameter_cannot_name_a_table_for_an_analyst(engine: ClickHouseProcess, table: str) -> None:
    assert acme(engine, "SELECT * FROM {t:Identifier}", None, param_t=table)[0] == 403
    assert acme(engine, "SELECT * FROM system.{t:Identifier}", None, param_t=table)[0] == 403


def test_another_database_chosen_by_an_analyst_shows_no_more(engine: ClickHouseProcess) -> None:
    for database in ("system", "default", "information_schema", "other", "`"):
        for table in ("processes", "parts", "usage", "`/etc/passwd`"):
            status, body, _ = acme(engine, f"SELECT * FROM {table}", None, database=database)
            assert status != 200 or body == b"", (database, table, body)


def test_two_tenants_who_ask_at_once_never_see_each_others_rows(engine: ClickHouseProcess) -> None:
    def asked(n: int) -> tuple[str, bytes]:
        tenant = ("acme", "globex", "operator")[n % 3]
        if tenant == "operator":
            return tenant, operator(engine, "SELECT count() FROM usage", max_threads=str(1 + n % 2))[1]
        return tenant, ask(engine, "analyst", KEYS[tenant], "SELECT DISTINCT tenant FROM usage_rows")[1]

    with ThreadPoolExecutor(12) as pool:
        for tenant, body in pool.map(asked, range(240)):
            assert body == (b"2\n" if tenant == "operator" else tenant.encode() + b"\n")


def test_one_tenants_slow_statements_hold_nobody_else_and_their_number_is_bounded(engine: ClickHouseProcess) -> None:
    slow = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"  # it ends when it is killed
    of_acme = "query LIKE '%sipHash64(number)%' AND query NOT LIKE '%processes%'"

    def running() -> int:
        return int(operator(engine, f"SELECT count() FROM system.processes WHERE {of_acme}")[1])

    def killed() -> bool:
        operator(engine, f"KILL QUERY WHERE {of_acme}")
        return all(answer.done() for answer in asked)

    with ThreadPoolExecutor(REQUESTS_MAX + 1) as pool:
        asked = [pool.submit(acme, engine, slow)]
        try:
            eventually(running, "the slow statement runs")
            asked += [pool.submit(acme, engine, slow if n == 0 else "SELECT 1") for n in range(REQUESTS_MAX)]
            eventually(lambda: any(answer.done() for answer in asked), "one is too many")
            assert ask(engine, "analyst", KEYS["globex"], "SELECT DISTINCT tenant FROM usage_rows")[:2] == (200, b"globex\n")
            assert running() == 1, "one of a tenant runs at a time, and it still does"
        finally:
            eventually(killed, "the slow ones are killed, and all others answered")
    answers = [answer.result() for answer in asked]
    assert sorted(status for status, _, _ in answers if status not in (200, 400)) == [503]
    (too_many,) = [body for status, body, code in answers if (status, code) == (503, "202")]
    assert b"16 requests of acme are under way" in too_many


def test_an_analysts_body_holds_a_statement_and_no_more(engine: ClickHouseProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=30)
    who = {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": KEYS["acme"], "Content-Length": str(STATEMENT_BYTES_MAX + 1)}
    connection.request("POST", "/", headers=who)  # the answer comes before the body
    answer = connection.getresponse()
    assert (answer.status, answer.headers["x-clickhouse-exception-code"]) == (413, "307"), answer.read()
    connection.close()


# --- our own roles


@pytest.mark.parametrize("role", ["ingest", "bills", "operator"])
@pytest.mark.parametrize(
    "sql", [*READS_A_FILE, *REACHES_OUT, *[w for w in WRITES if "{" in w], "SET ROLE ALL", "GRANT ALL ON *.* TO default"]
)
def test_our_own_roles_do_not_reach_outside_the_tables_either(engine: ClickHouseProcess, tmp_path: Path, role: str, sql: str) -> None:
    secret, out = tmp_path / "secret.csv", tmp_path / "out"
    secret.write_text("secret-of-the-machine\n")
    status, body, _ = ask(engine, role, engine.password(role), sql.format(file=secret, out=out))
    assert b"secret-of-the-machine" not in body and not out.exists(), body
    assert status != 200 or sql.startswith("EXPLAIN"), body


def test_each_role_does_what_it_is_for_and_no_more(engine: ClickHouseProcess) -> None:
    running = "INSERT INTO bills_running_rows (tenant, period) VALUES ('x', 'y')"
    insert = "INSERT INTO history_rows (topic) VALUES ('other')"
    makes = "CREATE TABLE IF NOT EXISTS made (a Int8) ENGINE = MergeTree ORDER BY a"
    allowed = {"ingest": (200, 200, 403, 403), "bills": (200, 403, 403, 403), "operator": (200, 200, 200, 200)}
    for role, expected in allowed.items():
        done = tuple(ask(engine, role, engine.password(role), sql)[0] for sql in (running, insert, makes, "DROP TABLE IF EXISTS made"))
        assert done == expected, role
        assert ask(engine, role, engine.password(role), "SELECT count() FROM usage")[1] == b"2\n"


def test_workers_insert_what_they_describe(engine: ClickHouseProcess) -> None:
    client = ClickHouse(engine.settings.model_copy(update={"clickhouse_user": "ingest"}))
    operator(engine, "CREATE TABLE described (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    sql = "INSERT INTO described (`a`, b) SELECT a + 1, concat(b, getSetting('log_comment')) FROM input('`a` UInt64, b String') FORMAT CSV"
    for n, comment in enumerate(("x", "it's \\", "", "x")):
        assert client.insert(sql, b'1,"q"\n2,"FORMAT CSV"\n', {"log_comment": comment, "max_threads": 1 + n % 2}) == 2
    assert client.value("SELECT groupArray(b) AS b FROM (SELECT b FROM described WHERE a = 2 ORDER BY b)") == ["q", "qit's \\", "qx", "qx"]


def test_the_default_of_a_column_that_an_insert_describes_reads_no_file(engine: ClickHouseProcess, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret-of-the-machine")
    for structure in (f"t String, p String DEFAULT file('{secret}')", f"t String, p String) ENGINE = Null AS SELECT file('{secret}') --"):
        quoted = structure.replace("'", "\\'")
        sql = f"INSERT INTO bills_running_rows (tenant, period) SELECT t, p FROM input('{quoted}') FORMAT JSONEachRow\n" + '{"t": "a"}\n'
        assert ask(engine, "ingest", engine.password("ingest"), sql)[0] in (400, 403)


def test_each_password_is_a_file_of_its_own_that_only_its_owner_reads(engine: ClickHouseProcess) -> None:
    files = {role: engine.settings.folder / "clickhouse" / f"{role}.password" for role in ("ingest", "bills", "operator")}
    assert len({engine.password(role) for role in files}) == 3
    assert {f.stat().st_mode & 0o777 for f in files.values()} == {0o600}
    assert ask(engine, "bills", engine.password("operator"), "SELECT 1")[0] == 403


# --- browsers


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
    ],
)
def test_a_foreign_origin_or_host_is_refused(engine: ClickHouseProcess, headers: dict[str, str]) -> None:
    assert ask(engine, "operator", engine.password(), "SELECT 1", headers)[0] in (400, 403)
    own = f"127.0.0.1:{engine.port}"
    assert ask(engine, "operator", engine.password(), "SELECT 1", {"Host": own, "Origin": f"http://{own}"})[0] == 200


# --- the same on a server


def test_the_statements_for_a_server_say_what_the_local_engine_enforces(engine: ClickHouseProcess) -> None:
    users = [*(server_role_user(role, "secret") for role in OWN_ROLES), server_analyst("analyst-acme", "acme", "0" * 64)]
    statements = [*server_statements("market"), *users]
    for statement in statements:  # the engine parses each; it only has nowhere to keep them
        _, body, code = operator(engine, f"EXPLAIN AST {statement}")
        assert code != "62", (statement, body)
    xml = users_xml("market")
    for table, condition in OWN_ROWS.items():
        own = condition.format(tenant="nullIf(getSetting('SQL_tenant'), '')")
        assert f"CREATE ROW POLICY OR REPLACE own_rows ON market.{table} USING {own} TO analyst" in statements
        assert condition.format(tenant="nullIf(getSetting('log_comment'), '')") in xml.replace("&gt;", ">")
    granted = {s.removeprefix("GRANT ").removesuffix(" TO analyst") for s in statements if s.startswith("GRANT SELECT ON market.")}
    assert granted == {f"SELECT ON market.{name}" for name in (*OWN_ROWS, *VIEWS)}
    assert all(f"<query>GRANT {g}</query>" in xml for g in granted)
    assert statements[-1].endswith(" SETTINGS async_insert = 0, SQL_tenant = 'acme' CONST, readonly = 1")
