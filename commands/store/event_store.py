"""Where decisions are kept: an append-only table that refuses a second event of one version. The only file that imports eventsourcing.

An event's position in the table is its position in the market's order of decisions; it is never deleted. Beside it stand the answers to
requests that may come again, which are: a table that is as long as they are kept. SQLite on a laptop, Postgres in production: the same
recorder interface, the same contract tests.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from eventsourcing.persistence import IntegrityError, PersistenceError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteConnection, SQLiteConnectionPool, SQLiteCursor, SQLiteDatastore

from events.facts.fact import Timestamp
from events.process.settings import Settings

EVENTS_READ_MAX = 1000
"""Events of one aggregate, or notifications, read at once: bounds memory at 512 MB in the worst case, 1 MB in the usual."""
QUOTA_EVENT = "QuotaTaken"
"""The name of an event that holds no fact, and marks a decision by a tenant's quota: of two that are decided at once, the store takes one. The relay
passes it over, and a store that is rebuilt from the log begins without it."""
ANSWERS = "command_answers"
EXPIRED_PER_ANSWER = 2
"""Expired answers that are deleted in the transaction of a new one: more than come, so the table holds what is kept and no more."""
TABLES_KEY = 0x6D6B7374
"""Names the advisory lock under which Postgres tables are made ("mkst")."""
LOCK_S_MAX = 10
"""Longest wait for another process's transaction before the caller gets 503."""


class Conflict(Exception):
    """Another process appended this version first: load and decide again. Nothing was written."""


class StoreUnavailable(Exception):
    """The database did not answer. Transient; whether the last append happened is not known."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of one aggregate. `name` is its fact's name, `state` its stored record; or it is a `QUOTA_EVENT`."""

    originator: str
    version: int
    name: str
    state: bytes
    position: int = 0
    """0 until it is stored, and when read by aggregate."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to a request at `at` (µs UTC). It takes the place of one before `expires`, and is in conflict with one since."""

    request: str
    at: Timestamp
    expires: Timestamp
    state: bytes


class Store:
    """Thread-safe. Every method raises StoreUnavailable when the database is away."""

    def __init__(self, recorder: Any, url: str) -> None:
        self._recorder = recorder
        self.url = url

    def append(self, events: Sequence[Event], answers: Sequence[Answer] = ()) -> list[int]:
        """All or nothing, in one transaction, durable on return; the positions of the events, growing. Raises Conflict."""
        rows = [StoredEvent(e.originator, e.version, e.name, e.state) for e in events]
        with _translated():
            positions = self._recorder.insert_events(rows, answers=answers)
        assert positions is not None and len(positions) == len(events)
        return [int(p) for p in positions]

    def append_at(self, events: Sequence[Event]) -> None:
        """Appends events at the positions they name, which must grow: only for a store that is rebuilt from the log."""
        with _translated():
            self._recorder.append_at(events)

    def answer(self, request: str) -> tuple[Timestamp, bytes] | None:
        """When it was given, and its state."""
        with _translated():
            return self._recorder.answer(request)

    def answers_count(self) -> int:
        """Answers that are kept, and those that expired and were not deleted yet. Reads them all."""
        with _translated():
            return self._recorder.answers_count()

    def events(self, originator: str, after: int = 0, until: int | None = None) -> list[Event]:
        """All events of an aggregate past version `after`, up to version `until`."""
        found: list[Event] = []
        while True:
            with _translated():
                page = self._recorder.select_events(originator, gt=after, lte=until, limit=EVENTS_READ_MAX)
            found += [Event(str(e.originator_id), e.originator_version, e.topic, bytes(e.state)) for e in page]
            if len(page) < EVENTS_READ_MAX:
                return found
            after = found[-1].version

    def last_event(self, originator: str) -> Event | None:
        with _translated():
            page = self._recorder.select_events(originator, desc=True, limit=1)
        return next((Event(str(e.originator_id), e.originator_version, e.topic, bytes(e.state)) for e in page), None)

    def positions(self, originator: str, first: int, last: int) -> list[int]:
        """The positions of versions `first` … `last` of an aggregate."""
        with _translated():
            return self._recorder.positions(originator, first, last)

    def notifications(self, after: int, limit: int = EVENTS_READ_MAX, names: Sequence[str] = (), until: int | None = None) -> list[Event]:
        """Events in the order they were decided, past position `after` up to `until`. Positions have gaps on Postgres."""
        with _translated():
            page = self._recorder.select_notifications(after, limit, until, names, inclusive_of_start=False)
        return [Event(str(n.originator_id), n.originator_version, n.topic, bytes(n.state), n.id) for n in page]

    def last_position(self) -> int:
        """0 for an empty store."""
        with _translated():
            return int(self._recorder.max_notification_id() or 0)

    def close(self) -> None:
        self._recorder.datastore.close()


def open_store(settings: Settings) -> Store:
    """The store of this stack, its tables created when missing."""
    url = urlsplit(settings.store)
    with _translated():
        if url.scheme == "sqlite":
            return Store(_sqlite(Path(settings.store.removeprefix("sqlite:///"))), settings.store)
        if url.scheme in ("postgresql", "postgres"):
            password = settings.store_password.get_secret_value() or unquote(url.password or "")
            return Store(
                _postgres(url.hostname or "", url.port or 5432, url.path.lstrip("/"), unquote(url.username or ""), password), settings.store
            )
    raise ValueError(f"MODELMARKET_STORE_URL is {url.scheme}://…; write sqlite:///FILE or postgresql://user@host:port/db")


class _translated:
    """The library's errors as ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, IntegrityError):
            raise Conflict(str(error)) from error
        if isinstance(error, PersistenceError | sqlite3.Error):
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


def _expired(answers: Sequence[Answer]) -> tuple[Timestamp, int]:
    """Before which instant answers are expired, and how many of them are deleted with these."""
    return min(a.expires for a in answers), EXPIRED_PER_ANSWER * len(answers)


# --- SQLite


class _DurablePool(SQLiteConnectionPool):
    """An acknowledged command survives a power cut: each commit is flushed, which WAL alone does not promise."""

    def _create_connection(self) -> SQLiteConnection:
        connection = super()._create_connection()
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=FULL")
        return connection


class _SQLite(SQLiteApplicationRecorder):
    def construct_create_table_statements(self) -> list[str]:
        table = f"CREATE TABLE IF NOT EXISTS {ANSWERS} (request TEXT PRIMARY KEY, at INTEGER NOT NULL, state BLOB NOT NULL)"
        return [*super().construct_create_table_statements(), table, f"CREATE INDEX IF NOT EXISTS {ANSWERS}_at ON {ANSWERS} (at)"]

    def _insert_events(
        self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], *, answers: Sequence[Answer] = (), **kwargs: Any
    ) -> Sequence[int] | None:
        for answer in answers:
            c.execute(f"DELETE FROM {ANSWERS} WHERE request=? AND at<?", (answer.request, answer.expires))
            c.execute(f"INSERT INTO {ANSWERS} VALUES (?,?,?)", (answer.request, answer.at, answer.state))
        if answers:
            expired = f"SELECT rowid FROM {ANSWERS} WHERE at<? ORDER BY at LIMIT ?"
            c.execute(f"DELETE FROM {ANSWERS} WHERE rowid IN ({expired})", _expired(answers))
        return super()._insert_events(c, stored_events, **kwargs)

    def answer(self, request: str) -> tuple[Timestamp, bytes] | None:
        with self.datastore.transaction(commit=False) as c:
            c.execute(f"SELECT at, state FROM {ANSWERS} WHERE request=?", (request,))
            return next(((int(row["at"]), bytes(row["state"])) for row in c.fetchall()), None)

    def answers_count(self) -> int:
        with self.datastore.transaction(commit=False) as c:
            c.execute(f"SELECT COUNT(*) FROM {ANSWERS}")
            return int(c.fetchone()[0])

    def append_at(self, events: Sequence[Event]) -> None:
        statement = f"INSERT INTO {self.events_table_name} (rowid, originator_id, originator_version, topic, state) VALUES (?,?,?,?,?)"
        with self.datastore.transaction(commit=True) as c:
            c.executemany(statement, [(e.position, e.originator, e.version, e.name, e.state) for e in events])

    def positions(self, originator: str, first: int, last: int) -> list[int]:
        with self.datastore.transaction(commit=False) as c:
            c.execute(
                f"SELECT rowid FROM {self.events_table_name} WHERE originator_id=? AND originator_version BETWEEN ? AND ? ORDER BY originator_version",
                (originator, first, last),
            )
            return [int(row[0]) for row in c.fetchall()]


def _sqlite(file: Path) -> _SQLite:
    file.parent.mkdir(parents=True, exist_ok=True)
    datastore = SQLiteDatastore(str(file), lock_timeout=LOCK_S_MAX, originator_id_type="text")
    datastore.pool.close()
    datastore.pool = _DurablePool(db_name=str(file), lock_timeout=LOCK_S_MAX, pool_size=5, max_overflow=40, pool_timeout=LOCK_S_MAX)
    recorder = _SQLite(datastore)
    recorder.create_table()
    return recorder


# --- Postgres


class _Postgres(PostgresApplicationRecorder):
    @property
    def _answers(self) -> str:
        return f'"{self.datastore.schema}"."{ANSWERS}"'

    def create_table(self) -> None:
        super().create_table()
        with self.datastore.transaction(commit=True) as c:
            c.execute(f"CREATE TABLE IF NOT EXISTS {self._answers} (request TEXT PRIMARY KEY, at BIGINT NOT NULL, state BYTEA NOT NULL)")  # type: ignore[arg-type]
            c.execute(f"CREATE INDEX IF NOT EXISTS {ANSWERS}_at ON {self._answers} (at)")  # type: ignore[arg-type]

    def insert_events(self, stored_events: Sequence[StoredEvent], *, answers: Sequence[Answer] = (), **kwargs: Any) -> Sequence[int] | None:
        if stored_events:
            return super().insert_events(stored_events, answers=answers, **kwargs)
        with self.datastore.transaction(commit=True) as c:  # the library's own way asks nobody whether they were taken
            self._insert_answers(c, answers)
        return []

    def _insert_events(self, curs: Any, stored_events: Sequence[StoredEvent], *, answers: Sequence[Answer] = (), **kwargs: Any) -> None:
        self._insert_answers(curs, answers)
        super()._insert_events(curs, stored_events, **kwargs)

    def _insert_answers(self, c: Any, answers: Sequence[Answer]) -> None:
        """In one order whoever writes them, and what is deleted waits for nobody: so two writers cannot wait for each other."""
        for answer in sorted(answers, key=lambda a: a.request):
            c.execute(f"DELETE FROM {self._answers} WHERE request=%s AND at<%s", (answer.request, answer.expires))  # type: ignore[arg-type]
            c.execute(f"INSERT INTO {self._answers} VALUES (%s,%s,%s)", (answer.request, answer.at, answer.state))  # type: ignore[arg-type]
        if answers:
            expired = f"SELECT ctid FROM {self._answers} WHERE at<%s ORDER BY at LIMIT %s FOR UPDATE SKIP LOCKED"
            c.execute(f"DELETE FROM {self._answers} WHERE ctid = ANY(ARRAY({expired}))", _expired(answers))  # type: ignore[arg-type]

    def answer(self, request: str) -> tuple[Timestamp, bytes] | None:
        with self.datastore.get_connection() as connection, connection.cursor() as c:
            c.execute(f"SELECT at, state FROM {self._answers} WHERE request=%s", (request,))  # type: ignore[arg-type]
            return next(((int(row["at"]), bytes(row["state"])) for row in c.fetchall()), None)

    def answers_count(self) -> int:
        with self.datastore.get_connection() as connection, connection.cursor() as c:
            c.execute(f"SELECT COUNT(*) AS n FROM {self._answers}")  # type: ignore[arg-type]
            return next(int(row["n"]) for row in c.fetchall())

    def append_at(self, events: Sequence[Event]) -> None:
        table = f'"{self.datastore.schema}"."{self.events_table_name}"'
        statement = f"INSERT INTO {table} (notification_id, originator_id, originator_version, topic, state) VALUES (%s,%s,%s,%s,%s)"
        with self.datastore.transaction(commit=True) as c:
            c.executemany(statement, [(e.position, e.originator, e.version, e.name, e.state) for e in events])  # type: ignore[arg-type]
            c.execute("SELECT setval(pg_get_serial_sequence(%s, 'notification_id'), %s)", (table, events[-1].position))

    def positions(self, originator: str, first: int, last: int) -> list[int]:
        with self.datastore.get_connection() as connection, connection.cursor() as c:
            table = f'"{self.datastore.schema}"."{self.events_table_name}"'
            c.execute(
                f"SELECT notification_id FROM {table} WHERE originator_id=%s AND originator_version BETWEEN %s AND %s ORDER BY originator_version",  # type: ignore[arg-type]
                (originator, first, last),
            )
            return [int(row["notification_id"]) for row in c.fetchall()]


def _postgres(host: str, port: int, database: str, user: str, password: str) -> _Postgres:
    # Never `enable_db_functions`: a reader of the notification log then misses events (seen: 227 of 32 000).
    datastore = PostgresDatastore(
        database,
        host,
        port,
        user,
        password,
        pool_size=2,
        max_overflow=18,
        connect_timeout=LOCK_S_MAX,
        lock_timeout=LOCK_S_MAX,
        idle_in_transaction_session_timeout=LOCK_S_MAX,
        originator_id_type="text",
    )
    recorder = _Postgres(datastore)
    # CREATE … IF NOT EXISTS by two processes at once fails on Postgres ("tuple concurrently updated"): one after another, then.
    with datastore.get_connection() as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (TABLES_KEY,))
        try:
            recorder.create_table()
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (TABLES_KEY,))
    return recorder
