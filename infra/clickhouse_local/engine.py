"""The local ClickHouse: chDB, the same engine as a library, behind the ClickHouse HTTP protocol. One process owns the folder.

`python -m infra.clickhouse_local.engine`. Clients see only the protocol, so production points them at a ClickHouse server instead. The only
file that imports chdb.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from events.process.file_lock import FileLock
from events.process.http_server import make_server
from events.process.json_logging import start_logging
from events.process.passwords import clickhouse_password_file
from events.process.settings import Settings
from infra.clickhouse_local.fences import Fences
from infra.clickhouse_local.grants import LOADER, OWN_ROLES, TENANT_SETTING, Role, users_xml
from infra.clickhouse_local.http_protocol import Application, Job, Result
from infra.clickhouse_local.parsing import BadStatement, EngineError, Parser, Statement, identifier, structures
from infra.clickhouse_local.permissions import check, check_settings
from infra.clickhouse_local.request_bodies import decoded, in_memory
from infra.clickhouse_local.requests import read_request
from infra.clickhouse_local.sessions import Session
from infra.clickhouse_local.sign_in import SignIn, ask_query_api
from infra.launcher.keys import read_or_create_secret, write_secret

logger = logging.getLogger(__name__)
READERS, WRITERS, ANALYSTS = 4, 2, 2
"""Threads. Inserts of the workers have their own, and analysts theirs: a slow query never delays facts or bills."""
READ_BOUNDS = {
    "max_execution_time": "60",
    "max_memory_usage": str(6 << 30),
    "max_result_bytes": str(512 << 20),
    "result_overflow_mode": "throw",
    "max_threads": str(max(1, (os.cpu_count() or 2) // 2)),  # a query leaves cores to the inserts
}
"""Bounds of one statement that reads, where the client names none."""
ANALYST_BOUNDS = {**READ_BOUNDS, "max_execution_time": "30", "max_memory_usage": str(2 << 30)}
NOT_GRANTED, NOT_THERE = 497, "SELECT 0 AS result"
"""What a role may not see is not there, as in SHOW TABLES: the inspectors of SQLAlchemy ask EXISTS, and expect no error."""
BASE = {"use_structure_from_insertion_table_in_table_functions": "0"}  # the structure of `input(…)` is the statement's own
CONNECTIONS_MAX = 512


class ChdbEngine:
    """Runs statements on the folder. `await run(job)`; close() when nothing runs any more. `database` is made, and is the analysts' one."""

    def __init__(self, folder: Path, database: str) -> None:
        import chdb  # loads 300 MB: only the process that owns the folder

        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _own(folder / "owner.lock")
        self._database, self._path = database, f"{folder / 'data'}?config-file={_write_access(folder / 'access', database)}"
        self._connect = cast(Any, chdb).connect
        self._keeps_open = self._connect(self._path)
        self._keeps_open.query("SET ROLE operator")
        self._keeps_open.query(f"CREATE DATABASE IF NOT EXISTS {identifier(database)}")
        self._local, self._fences = threading.local(), Fences(folder / "fences.json")
        self._readers, self._writers = ThreadPoolExecutor(READERS, "read"), ThreadPoolExecutor(WRITERS, "write")
        self._analysts = ThreadPoolExecutor(ANALYSTS, "analyst")
        self._parser = Parser(self._ask)

    async def run(self, job: Job) -> Result:
        match job.caller.role:
            case "ingest":
                pool = self._writers
            case "analyst":
                pool = self._analysts
            case "bills" | "operator":
                pool = self._readers
        return await asyncio.get_running_loop().run_in_executor(pool, self._run, job)

    def close(self) -> None:
        for pool in (self._readers, self._writers, self._analysts):
            pool.shutdown()
        self._keeps_open.close()
        self._lock.release()

    def _run(self, job: Job) -> Result:
        began = time.monotonic_ns()
        statement, rows, encoding = read_request(self._parser, job.sql, job.body, job.encoding)
        if job.only_reads and not statement.reads_only:
            raise BadStatement(164, "READONLY", "GET only reads; use POST")
        self._check(job, statement)
        form = statement.format or job.format
        try:
            with self._fences.held(job.fence), self._session(job, statement) as session:
                if statement.takes_rows:
                    done, size = self._insert(session, job, statement, rows, encoding)
                else:
                    done, size = session.query(statement.text, form, job.params), 0
                body = bytes(done.bytes() or b"")
        except EngineError as e:
            if e.code != NOT_GRANTED or not statement.kind.startswith("Exists"):
                raise
            return self._run(replace(job, sql=NOT_THERE, body=[], format=form))
        elapsed = time.monotonic_ns() - began
        return Result(body, form, statement.reads_only, int(done.rows_read()), int(done.rows_written()), size, elapsed)

    def _check(self, job: Job, statement: Statement) -> None:
        check(job.caller.role, statement, self._database)
        check_settings(job.caller.role, job.settings)
        for structure in structures(statement):  # columns may have defaults, and those are expressions
            check("operator", self._parser.statement(f"CREATE TABLE t ({structure}) ENGINE = Null"), self._database)

    def _insert(self, session: Session, job: Job, statement: Statement, rows: Sequence[bytes], encoding: str) -> tuple[Any, int]:
        fd, size = in_memory(decoded(rows, encoding))
        try:
            return session.query(self._parser.with_rows_from(statement, f"/proc/self/fd/{fd}"), "TabSeparated", job.params), size
        finally:
            os.close(fd)

    @contextmanager
    def _session(self, job: Job, statement: Statement) -> Generator[Session]:
        """The thread's own for this role; an analyst's is for one statement, and cannot change settings afterwards."""
        bounds = READ_BOUNDS if statement.reads_only else {}
        if job.caller.role == "analyst":
            with closing(Session(self._connect, self._path, "analyst")) as session:
                session.use(job.database or self._database)
                session.set({**BASE, **ANALYST_BOUNDS, **job.settings, TENANT_SETTING: job.caller.tenant, "readonly": "1"})
                yield session
        else:
            session = self._own_session(f"{job.caller.role}, {LOADER}" if statement.takes_rows else job.caller.role)
            session.use(job.database or self._database)
            session.set({**BASE, **bounds, **job.settings})
            yield session

    def _own_session(self, role: str) -> Session:
        sessions: dict[str, Session] = self._local.__dict__.setdefault("sessions", {})
        if role in sessions and sessions[role].broken:
            sessions.pop(role).close()
        if role not in sessions:
            sessions[role] = Session(self._connect, self._path, role)
        return sessions[role]

    def _ask(self, sql: str) -> str:
        """Parses the text of a statement, without any rights."""
        return bytes(self._own_session("NONE").query(sql, "TSVRaw", {}).bytes() or b"").decode("utf-8", "replace").removesuffix("\n")


def _write_access(folder: Path, database: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    users, config = folder / "users.xml", folder / "config.xml"
    users.write_text(users_xml(database))
    config.write_text(f"<clickhouse><users_config>{escape(str(users))}</users_config></clickhouse>\n")
    return config


def _own(path: Path) -> FileLock:
    lock = FileLock(path)
    if not lock.acquire():
        raise SystemExit(f"{path}: another process owns this folder")
    return lock


def _passwords(settings: Settings) -> dict[Role, str]:
    """Of our own roles: made at the first start; a setting gives that of its user."""
    given = {settings.clickhouse_user: settings.clickhouse_password.get_secret_value()}
    found = dict[Role, str]()
    for role in OWN_ROLES:
        file = clickhouse_password_file(settings.folder, role)
        if given.get(role):
            write_secret(file, given[role])
        found[role] = read_or_create_secret(file, secrets.token_hex(32))
    return found


def _ignored(number: int, frame: object) -> None:
    """The signal that uvicorn raises once more."""


def main() -> None:
    os.environ["TZ"] = "UTC"
    time.tzset()
    settings = Settings()
    start_logging("clickhouse")
    engine = ChdbEngine(settings.folder / "clickhouse", settings.clickhouse_database)
    own_hosts = frozenset(["localhost", settings.host, urlsplit(settings.clickhouse).hostname or "localhost"])
    application = Application(engine, SignIn(_passwords(settings), ask_query_api(settings.queries)), own_hosts)
    # uvicorn stops by itself and then raises the signal once more: without a handler of ours that would end us before close().
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignored)
    # Our own processes share one address: it may hold every connection, but a silent one only while nobody else wants it.
    server = make_server(application, settings.host, settings.clickhouse_port, connections_max=CONNECTIONS_MAX, address_max=CONNECTIONS_MAX)
    logger.info("ClickHouse over HTTP at %s", settings.clickhouse)
    try:
        server.run()
    finally:
        engine.close()


if __name__ == "__main__":
    main()
