"""The ClickHouse endpoint before programs of strangers, with the defaults of their libraries: JDBC, both dialects of SQLAlchemy, pandas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from infra.clickhouse_local.grants import VIEWS
from infra.install import jars_of_tests
from projections.query_api.keys_from_log import KeysFromLog
from tests.support.clickhouse.clickhouse_process import ClickHouseProcess
from tests.support.clickhouse.jdbc_client import JdbcClient, JdbcError
from tests.support.clickhouse.two_tenants import KEYS, TENANTS, fill_tables, query_api

pytestmark = pytest.mark.filterwarnings("ignore:The 'clickhouse.//' URL remains registered")  # both dialects are installed here
EVERY_TYPE = """SELECT toUInt64(18446744073709551615) AS u, toDateTime64('2026-01-02 03:04:05.678901', 6, 'UTC') AS d,
    toLowCardinality('é') AS l, CAST(NULL AS Nullable(Int32)) AS n, CAST('1234.5600' AS Decimal(38, 4)) AS m"""
FAILS_HALF_WAY = "SELECT number, throwIf(number = 3, 'naïve') FROM numbers(10)"
ROWS = 300_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    process = ClickHouseProcess(tmp_path_factory.mktemp("engine"))
    process.start()
    fill_tables(process.settings)
    with query_api(process.settings, KeysFromLog()):
        yield process
    process.stop()


@pytest.fixture(scope="module", params=["analyst", "operator"])
def user(request: pytest.FixtureRequest) -> str:
    return request.param


def password(engine: ClickHouseProcess, user: str) -> str:
    return engine.password() if user == "operator" else KEYS["acme"]


# --- JDBC

Ask = Callable[..., Any]
"""(user, what to do, *its arguments)"""


@pytest.fixture(scope="module")
def jdbc(engine: ClickHouseProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    if not jars_of_tests().is_dir():
        pytest.skip("the JDBC driver is not installed (make setup-tests)")
    client = JdbcClient(tmp_path_factory.mktemp("classes"))
    url = f"jdbc:clickhouse://127.0.0.1:{engine.port}/market"
    yield lambda user, *words: client.ask(url, user, password(engine, user), *words)
    client.close()


def test_jdbc_reads_values_of_every_kind(jdbc: Ask, user: str) -> None:
    (row,) = jdbc(user, "query", EVERY_TYPE)
    assert row == {"u": str(2**64 - 1), "d": "2026-01-02 03:04:05.678901", "l": "é", "n": None, "m": "1234.5600"}


def test_jdbc_shows_each_user_its_tables_and_their_columns(jdbc: Ask, user: str) -> None:
    tables = {row["TABLE_NAME"] for row in jdbc(user, "tables", "market")}
    assert tables == set(VIEWS) if user == "analyst" else tables >= {*VIEWS, "alerts", "usage"}
    assert "market" in {row["TABLE_SCHEM"] for row in jdbc(user, "schemas")}
    columns = {row["COLUMN_NAME"]: row["TYPE_NAME"] for row in jdbc(user, "columns", "market", "metering_daily")}
    assert (columns["tenant"], columns["day"], columns["calls"]) == ("LowCardinality(String)", "Date", "UInt64")
    assert {row["TYPE_NAME"] for row in jdbc(user, "types")} >= {"UInt64", "String"}
    keys = {row["COLUMN_NAME"] for row in jdbc(user, "keys", "market", "usage")}
    assert keys == (set() if user == "analyst" else {"kafka_partition", "kafka_offset"})


def test_jdbc_shows_an_analyst_its_own_rows(jdbc: Ask) -> None:
    for view in ("usage_counted", "metering_daily", "bills", "usage"):
        assert jdbc("analyst", "query", f"SELECT DISTINCT tenant FROM {view}") == [{"tenant": "acme"}]
        assert len(jdbc("operator", "query", f"SELECT DISTINCT tenant FROM {view}")) == len(TENANTS)


def test_jdbc_prepares_a_statement(jdbc: Ask, user: str) -> None:
    hostile = "it's \\ é ' ; DROP TABLE usage -- ?"
    assert jdbc(user, "prepared", "SELECT ? + 1 AS n, ? AS s", "41", hostile) == [{"n": "42", "s": hostile}]


@pytest.mark.parametrize(
    ("sql", "code", "says"),
    [
        ("SELECT * FROM nowhere", 60, "Unknown table expression identifier 'nowhere'"),
        ("SELEKT 1", 62, "Syntax error: failed at position 8"),
        ("SELECT throwIf(1, '" + "naïve " * 1000 + "')", 395, "naïve naïve"),
        (FAILS_HALF_WAY, 395, "naïve"),
        ("SELECT * FROM file('/etc/passwd', 'LineAsString')", 497, "Not enough privileges: file reaches outside the tables"),
    ],
)
def test_jdbc_reads_the_message_of_an_error_and_goes_on(jdbc: Ask, user: str, sql: str, code: int, says: str) -> None:
    with pytest.raises(JdbcError) as refused:
        jdbc(user, "query", sql)
    assert refused.value.code == code
    assert str(refused.value).startswith(f"Code: {code}. DB::Exception: ") and says in str(refused.value)
    assert jdbc(user, "query", "SELECT 1 AS one") == [{"one": "1"}]


def test_jdbc_reads_a_large_result_and_the_beginning_of_one(jdbc: Ask, user: str) -> None:
    answer = jdbc(user, "sum", f"SELECT number, repeat('x', 50) FROM numbers({ROWS})")
    assert answer == {"count": ROWS, "sum": ROWS * (ROWS - 1) // 2}
    assert jdbc(user, "first", "2", f"SELECT number FROM numbers({ROWS})") == [{"number": "0"}, {"number": "1"}]


def test_jdbc_writes_as_operator_and_not_as_analyst(jdbc: Ask) -> None:
    create, insert = "CREATE TABLE jdbc (n UInt64, s String) ENGINE = MergeTree ORDER BY n", "INSERT INTO jdbc (n, s) VALUES (?, ?)"
    jdbc("operator", "update", create)
    assert jdbc("operator", "batch", insert, "it's", "", "é")["count"] == 3
    assert [row["s"] for row in jdbc("operator", "query", "SELECT s FROM jdbc ORDER BY n")] == ["", "é", "it's"]
    for words in (["update", create], ["batch", insert, "x"], ["query", "SELECT * FROM jdbc"], ["query", "SELECT * FROM alerts"]):
        with pytest.raises(JdbcError) as refused:
            jdbc("analyst", *words)
        assert refused.value.code == 497 and "Not enough privileges" in str(refused.value)


def test_jdbc_says_that_a_password_is_wrong(jdbc: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KEYS, "acme", "mm_nobodys")
    with pytest.raises(JdbcError, match="analyst: Authentication failed") as refused:
        jdbc("analyst", "query", "SELECT 1")
    assert refused.value.code == 516


# --- SQLAlchemy and pandas


@pytest.fixture(scope="module", params=["clickhousedb", "clickhouse"])
def alchemy(request: pytest.FixtureRequest, engine: ClickHouseProcess, user: str) -> Iterator[sa.Engine]:
    """With the dialect of clickhouse-connect, and that of clickhouse-sqlalchemy."""
    url = sa.URL.create(request.param, user, password(engine, user), "127.0.0.1", engine.port, "market")
    made = sa.create_engine(url)
    yield made
    made.dispose()


def tenants_of(user: str) -> list[str]:
    return ["acme"] if user == "analyst" else list(TENANTS)


def test_an_inspector_names_what_its_user_may_see(alchemy: sa.Engine, user: str) -> None:
    inspector = sa.inspect(alchemy)
    assert inspector.default_schema_name == "market" and "market" in inspector.get_schema_names()
    assert user == "operator" or inspector.get_schema_names() == ["market"]
    for schema in (None, "market"):
        views, tables = set(inspector.get_view_names(schema)), set(inspector.get_table_names(schema))
        assert views == set(VIEWS) if user == "analyst" else views >= {*VIEWS, "alerts"}
        assert ("usage" in tables, "usage_counted" in views) == (user == "operator", True)
        there = [name for name in ("metering_daily", "usage", "alerts", "nowhere", "odd `name'") if inspector.has_table(name, schema)]
        assert there == (["metering_daily", "usage"] if user == "analyst" else ["metering_daily", "usage", "alerts"])


def test_an_inspector_describes_a_view(alchemy: sa.Engine) -> None:
    inspector = sa.inspect(alchemy)
    columns = {column["name"]: str(column["type"]) for column in inspector.get_columns("metering_daily", "market")}
    assert (columns["tenant"], columns["day"], columns["calls"]) == ("LowCardinality(String)", "Date", "UInt64")
    assert "time zone of the tenant" in (inspector.get_table_comment("metering_daily")["text"] or "")
    assert (inspector.get_indexes("metering_daily"), inspector.get_foreign_keys("metering_daily")) == ([], [])
    assert not inspector.get_pk_constraint("metering_daily").get("constrained_columns")
    table = sa.Table("metering_daily", sa.MetaData(), autoload_with=alchemy)
    assert list(columns) == [column.name for column in table.columns]
    with pytest.raises(SQLAlchemyError if alchemy.name == "clickhousedb" else Exception, match="nowhere"):
        inspector.get_columns("nowhere")


def test_everything_that_a_user_may_see_is_reflected(alchemy: sa.Engine, user: str) -> None:
    found = sa.MetaData()
    found.reflect(alchemy, views=True)
    assert set(found.tables) == set(VIEWS) if user == "analyst" else set(found.tables) >= {*VIEWS, "alerts", "usage"}


def test_a_reflected_table_is_asked_in_sqlalchemys_own_language(alchemy: sa.Engine, user: str) -> None:
    usage = sa.Table("usage_counted", sa.MetaData(), autoload_with=alchemy)
    with alchemy.connect() as connection:
        rows = connection.execute(sa.select(usage.c.tenant, sa.func.sum(usage.c.calls)).group_by(usage.c.tenant).order_by(usage.c.tenant))
        assert [(str(tenant), int(calls)) for tenant, calls in rows] == [(tenant, 1) for tenant in tenants_of(user)]


def test_pandas_reads_statements_and_tables(alchemy: sa.Engine, user: str) -> None:
    assert pd.read_sql("SELECT tenant, calls FROM usage_counted ORDER BY tenant", alchemy)["tenant"].tolist() == tenants_of(user)
    by_name = sa.text("SELECT tenant FROM usage_counted WHERE tenant = :tenant")
    assert pd.read_sql(by_name, alchemy, params={"tenant": "globex"})["tenant"].tolist() == [t for t in tenants_of(user) if t == "globex"]
    for frame in (pd.read_sql("metering_daily", alchemy), pd.read_sql_table("metering_daily", alchemy, schema="market")):
        assert sorted(frame["tenant"]) == tenants_of(user) and frame["calls"].tolist() == [1] * len(frame)
    row = pd.read_sql(EVERY_TYPE, alchemy, coerce_float=False).iloc[0].to_dict()
    assert row == {"u": 2**64 - 1, "d": pd.Timestamp("2026-01-02 03:04:05.678901"), "l": "é", "n": None, "m": Decimal("1234.56")}


def test_pandas_reads_in_pieces(alchemy: sa.Engine) -> None:
    pieces = pd.read_sql("SELECT number AS n FROM numbers(30000)", alchemy, chunksize=10_000)
    assert [(len(piece), int(piece["n"].iloc[0])) for piece in pieces] == [(10_000, 0), (10_000, 10_000), (10_000, 20_000)]


def test_an_error_arrives_with_clickhouses_words_and_the_connection_goes_on(alchemy: sa.Engine) -> None:
    with alchemy.connect() as connection:
        for sql, says in (("SELECT * FROM nowhere", "UNKNOWN_TABLE"), (FAILS_HALF_WAY, "naïve")):
            with pytest.raises(Exception, match=says):
                pd.read_sql(sql, connection)
            assert pd.read_sql("SELECT 1 AS one", connection)["one"].tolist() == [1]
