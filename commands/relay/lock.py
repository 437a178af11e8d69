"""One relay at a time for one store. Two would do no harm but send everything twice: folds take copies for copies (K4)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg.conninfo import make_conninfo

from events.process.file_lock import FileLock
from events.process.settings import Settings

ADVISORY_KEY = 0x6D6B7265  # "mkre": names this lock among other users of the same database
ANSWER_S_MAX = 10
"""A database that is silent for longer than this is away, and with it, for all the relay knows, the lock."""
_NEVER_SILENT = {
    "connect_timeout": ANSWER_S_MAX,
    "tcp_user_timeout": ANSWER_S_MAX * 1000,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}


class LockLost(Exception):
    """The lock was held and is held no more, or nobody can say: another relay may be at work. Nothing may be sent."""


class RelayLock:
    """Held until the process ends, however it ends: the operating system or the database lets go.

    A lock in Postgres is its connection's. A database that was restarted, an administrator or a network may end that connection
    while the relay goes on through others; so whoever sends asks `check` before.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file: FileLock | None = None
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def take(self) -> bool:
        """False while another relay has it. Raises LockLost when the database does not answer."""
        if self._settings.store.startswith("sqlite:"):
            return self._take_file(Path(self._settings.store.removeprefix("sqlite:///")).with_suffix(".relay.lock"))
        try:
            return self._take_advisory()
        except psycopg.Error as e:
            raise LockLost(f"the database does not answer: {e}") from e

    def check(self) -> None:
        """Raises LockLost unless it is still held: one round trip on Postgres, nothing on a file."""
        if self._connection is None:
            return
        try:
            # By the database's own list, not by a sign of life: behind a pooler the next statement may be another backend's.
            row = self._connection.execute(
                "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted"
                " AND (classid::bigint << 32) + objid::bigint = %s AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                (ADVISORY_KEY,),
            ).fetchone()
        except psycopg.Error as e:
            raise LockLost(f"the connection that held the lock is gone: {e}") from e
        if row is None:
            raise LockLost("the database says that this connection holds no lock; session locks do not pass a transaction pooler")

    def _take_file(self, path: Path) -> bool:
        self._file = self._file or FileLock(path)
        return self._file.acquire()

    def _take_advisory(self) -> bool:
        if self._connection is None or self._connection.closed:
            password = self._settings.store_password.get_secret_value() or None
            self._connection = psycopg.connect(make_conninfo(self._settings.store, **_NEVER_SILENT), password=password, autocommit=True)
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_KEY,)).fetchone()
        return bool(row and row[0])

    def release(self) -> None:
        if self._file is not None:
            self._file.release()
            self._file = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
