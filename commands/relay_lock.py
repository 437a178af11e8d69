"""One relay at a time for one store. Two would do no harm but send everything twice: folds take copies for copies (K4)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from events.settings import Settings

ADVISORY_KEY = 0x6D6B7265  # "mkre": names this lock among other users of the same database


class RelayLock:
    """Held until the process ends, however it ends: the operating system or the database lets go."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file: int | None = None
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def take(self) -> bool:
        """False while another relay has it."""
        if self._settings.store.startswith("sqlite:"):
            return self._take_file(Path(self._settings.store.removeprefix("sqlite:///")).with_suffix(".relay.lock"))
        return self._take_advisory()

    def _take_file(self, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._file is None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _take_advisory(self) -> bool:
        if self._connection is None or self._connection.closed:
            password = self._settings.store_password.get_secret_value() or None
            self._connection = psycopg.connect(self._settings.store, password=password, autocommit=True, connect_timeout=10)
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_KEY,)).fetchone()
        return bool(row and row[0])

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
