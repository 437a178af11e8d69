"""One relay at a time for one store. Two would only send everything twice, and folds pass copies over (K4)."""

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
"""A database that does not answer for longer is unavailable, and the lock may be lost."""
_TIMEOUTS = {
    "connect_timeout": ANSWER_S_MAX,
    "tcp_user_timeout": ANSWER_S_MAX * 1000,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}


class LockLost(Exception):
    """The lock is not held any more, or this cannot be known: another relay may be running. Nothing may be sent."""


class RelayLock:
    """Held until the process ends, however it ends: then the operating system or the database releases it.

    A lock in Postgres is its connection's. A database that was restarted, an administrator or a network may end that connection
    while the relay goes on through others; so `check` is called before anything is sent.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file: FileLock | None = None
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def acquire(self) -> bool:
        """False while another relay holds it. Raises LockLost when the database does not answer."""
        if self._settings.store.startswith("sqlite:"):
            return self._acquire_file(Path(self._settings.store.removeprefix("sqlite:///")).with_suffix(".relay.lock"))
        try:
            return self._acquire_advisory()
        except psycopg.Error as e:
            raise LockLost(f"the database does not answer: {e}") from e

    def check(self) -> None:
        """Raises LockLost unless it is still held: one round trip on Postgres, nothing on a file."""
        if self._connection is None:
            return
        try:
            # Asks the list of locks, not only whether the connection works: behind a pooler the next statement may reach another backend.
            row = self._connection.execute(
                "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted"
                " AND (classid::bigint << 32) + objid::bigint = %s AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                (ADVISORY_KEY,),
            ).fetchone()
        except psycopg.Error as e:
            raise LockLost(f"the connection that held the lock is gone: {e}") from e
        if row is None:
            raise LockLost("the database says that this connection holds no lock; session locks do not pass a transaction pooler")

    def _acquire_file(self, path: Path) -> bool:
        self._file = self._file or FileLock(path)
        return self._file.acquire()

    def _acquire_advisory(self) -> bool:
        if self._connection is None or self._connection.closed:
            password = self._settings.store_password.get_secret_value() or None
            self._connection = psycopg.connect(make_conninfo(self._settings.store, **_TIMEOUTS), password=password, autocommit=True)
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
