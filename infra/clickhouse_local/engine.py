"""The local ClickHouse: chDB, the same engine as a library, behind the ClickHouse HTTP protocol. One process owns the folder.

`python -m infra.clickhouse_local.engine`. Clients see only the protocol, so production points them at a ClickHouse server instead. The only
file that imports chdb.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import uvicorn

from events.process.file_lock import FileLock
from events.process.json_logging import start_logging
from events.process.settings import Settings
from infra.clickhouse_local import statements
from infra.clickhouse_local.fences import Fences
from infra.clickhouse_local.http_protocol import Application, EngineError, Job, Result
from infra.clickhouse_local.request_bodies import decoded, in_memory

logger = logging.getLogger(__name__)
READERS, WRITERS = 4, 2
"""Threads, a connection each. Inserts have their own: a slow query never delays facts."""
DEFAULTS = {
    "max_execution_time": "60",
    "max_memory_usage": str(6 << 30),
    "max_result_bytes": str(512 << 20),
    "result_overflow_mode": "throw",
    "max_threads": str(max(1, (os.cpu_count() or 2) // 2)),  # a query leaves cores to the inserts
}
"""Bounds of one statement where the client names none."""
CONNECTIONS_MAX, KEEP_ALIVE_S, GRACE_S = 512, 75, 10

NOT_TEXT = "Code: 117. DB::Exception: the engine's message quotes data that is no text, so Python has lost it (INCORRECT_DATA)"
"""Instead of an empty message: before 3.11.4 Python drops one that is not UTF-8."""


class ChdbEngine:
    """Runs statements on the folder. `await run(job)`; close() when nothing runs any more."""

    def __init__(self, folder: Path) -> None:
        import chdb  # loads 300 MB: only the process that owns the folder

        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _own(folder / "owner.lock")
        self._path, self._connect = str(folder / "data"), cast(Any, chdb).connect
        self._keeps_open = self._connect(self._path)
        self._local, self._fences = threading.local(), Fences(folder / "fences.json")
        self._readers = ThreadPoolExecutor(READERS, "read", initializer=self._open)
        self._writers = ThreadPoolExecutor(WRITERS, "write", initializer=self._open)

    async def run(self, job: Job) -> Result:
        reads = isinstance(job.statement, statements.Other) and job.statement.reads_only
        return await asyncio.get_running_loop().run_in_executor(self._readers if reads else self._writers, self._run, job)

    def close(self) -> None:
        self._readers.shutdown()
        self._writers.shutdown()
        self._keeps_open.close()
        self._lock.release()

    def _open(self) -> None:
        self._local.connection, self._local.database = self._connect(self._path), "default"

    def _run(self, job: Job) -> Result:
        began = time.monotonic_ns()
        with self._fences.held(job.fence):
            self._use(job.database or "default")
            match job.statement:
                case statements.Insert():
                    done, size = self._insert(job, job.statement)
                case statements.Other():
                    settings = {**DEFAULTS, **job.settings} if job.statement.reads_only else job.settings
                    sql = statements.with_settings(job.statement, job.format, settings)
                    done, size = self._query(sql, job.format, job.params), 0
        body = bytes(done.bytes() or b"")
        return Result(body, int(done.rows_read()), int(done.rows_written()), size, time.monotonic_ns() - began)

    def _insert(self, job: Job, statement: statements.Insert) -> tuple[Any, int]:
        fd, size = in_memory(decoded(job.body, job.encoding))
        try:
            # The structure of `input(…)` is the statement's own: the table's must not be mixed in.
            settings = {"use_structure_from_insertion_table_in_table_functions": "0", **job.settings}
            return self._query(statements.insert_from(statement, f"/proc/self/fd/{fd}", settings), "TabSeparated", job.params), size
        finally:
            os.close(fd)

    def _use(self, database: str) -> None:
        if self._local.database != database:
            self._query(f"USE {statements.identifier(database)}", "Null", {})
            self._local.database = database

    def _query(self, sql: str, form: str, params: dict[str, str]) -> Any:
        try:
            return self._local.connection.query(sql, form, params=params or None)
        except UnicodeDecodeError as e:  # the message quotes data that is no text
            raise EngineError(e.object.decode("utf-8", "replace")) from e
        except Exception as e:  # chdb.ChdbError, which is imported only here; whatever it is, the client gets it as an answer
            raise EngineError(str(e) or NOT_TEXT) from e


def _own(path: Path) -> FileLock:
    lock = FileLock(path)
    if not lock.acquire():
        raise SystemExit(f"{path}: another process owns this folder")
    return lock


def _ignored(number: int, frame: object) -> None:
    """The signal that uvicorn raises once more."""


def main() -> None:
    os.environ["TZ"] = "UTC"
    time.tzset()
    settings = Settings()
    start_logging("clickhouse")
    engine = ChdbEngine(settings.folder / "clickhouse")
    application = Application(engine, settings.clickhouse_user, settings.clickhouse_password.get_secret_value())
    config = uvicorn.Config(
        cast(Any, application),
        host=settings.host,
        port=settings.clickhouse_port,
        log_config=None,
        access_log=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    # uvicorn stops by itself and then raises the signal once more: without a handler of ours that would end us before close().
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignored)
    server = uvicorn.Server(config)
    logger.info("ClickHouse over HTTP at %s", settings.clickhouse)
    try:
        server.run()
    finally:
        engine.close()


if __name__ == "__main__":
    main()
