"""Stores of each kind, as the tests of this folder are given them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from commands.store.event_store import Store, open_store
from events.process.settings import Settings
from infra.install import find_postgres
from tests.support.servers.postgres_server import running_postgres

Opener = Callable[[], Store]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    found = find_postgres()
    if found is None:
        pytest.skip("no Postgres is installed here (initdb not found)")
    with running_postgres(found) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.engine)])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the same empty store again and again, as several processes would."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'events.sqlite'}"
    else:
        server: str = request.getfixturevalue("postgres")
        name = f"market_{uuid.uuid4().hex}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        url = server.rsplit("/", 1)[0] + f"/{name}"
    with ExitStack() as opened:

        def open_one() -> Store:
            store = open_store(Settings(data=tmp_path, store_url=url))
            opened.callback(store.close)
            return store

        yield open_one


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()
