"""The command side on Postgres, as in production: decisions reach the log in their order, and one relay at a time sends them (K4)."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import httpx
import psycopg
import pytest

from commands.processor.quotas_from_store import QuotasFromStore
from commands.relay.lock import ADVISORY_KEY
from commands.store.event_store import QUOTA_EVENT
from events.facts.accounts import ResourceQuota
from events.process.settings import Settings
from infra.install import find_postgres
from infra.launcher import Stack
from infra.launcher.ports import free_block
from lifecycle.resources import quota_of
from tests.support.command_processes import ADMIN, ROOT, CommandClient, Process, environment
from tests.support.decided_log import check_complete
from tests.support.polling import eventually, health, is_ready
from tests.support.servers.postgres_server import running_postgres
from tests.support.stacks import prepared_log, reached_from_elsewhere
from tests.support.tenant_creator import TenantCreator, wait_relayed

NOTICED_S_MAX = 30.0
"""A relay asks for its lock at every batch, and at the latest with its heartbeat, once a second; the rest is for a slow machine."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    found = find_postgres()
    if found is None:
        pytest.skip("no Postgres is installed here (initdb not found)")
    with running_postgres(found) as url:
        yield url


@pytest.fixture(scope="module")
def log(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with prepared_log(tmp_path_factory.mktemp("postgres"), store_url=database(server, "market")) as stack:
        yield stack


@pytest.fixture(scope="module")
def creator(log: Stack) -> Iterator[TenantCreator]:
    creator = TenantCreator(log.settings)
    yield creator
    creator.close()


def database(server: str, name: str) -> str:
    """The URL of a new, empty database."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return server.rsplit("/", 1)[0] + f"/{name}"


@contextmanager
def relay_on(settings: Settings, url: str = "") -> Generator[Process]:
    process = Process("commands.relay.relay", settings, {"STORE_URL": url or settings.store}).start()
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def second_relay(settings: Settings) -> Generator[int]:
    """The same log and store, other ports. The port of its health page."""
    with free_block() as ports:
        elsewhere = {name.upper(): value for name, value in reached_from_elsewhere(settings, "relay").items()}
        elsewhere |= {"BASE_PORT": str(ports), "STORE_URL": settings.store}
        process = Process("commands.relay.relay", settings, elsewhere).start()
        try:
            eventually(
                lambda: (relay_health := health(ports + 8)) and "another relay" in relay_health["message"] and relay_health,
                "the second waits for its turn",
            )
            yield ports + 8
        finally:
            process.stop()


def holders(url: str) -> list[int]:
    """The backends that hold the relay's lock in this database."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (ADVISORY_KEY,),
        ).fetchall()
    return [int(row[0]) for row in rows]


def test_what_is_decided_over_http_arrives_in_order(log: Stack, creator: TenantCreator) -> None:
    api = Process("commands.api", log.settings, {"STORE_URL": log.settings.store}).start()
    try:
        eventually(lambda: _listens(log.settings), "the command API is there")
        http = CommandClient(log.settings)
        with relay_on(log.settings):
            threads = [threading.Thread(target=_create, args=(http, f"caller-{i}")) for i in range(4)]
            for t in threads:
                t.start()
            creator.create(50)  # another process decides meanwhile
            for t in threads:
                t.join(60)
            wait_relayed(log.settings, creator.store.last_position())
    finally:
        api.stop()
    chained = check_complete(log.settings)
    assert chained.copies == 0
    assert sum(r.key.startswith(b"caller-") for r in chained.records.values()) == 40


def _listens(settings: Settings) -> bool:
    try:
        return httpx.get(f"{settings.commands}/healthz", timeout=2).is_success
    except httpx.HTTPError:
        return False


def _create(http: CommandClient, name: str) -> None:
    for i in range(10):
        http.ok("POST", "/v1/tenants", ADMIN, json={"tenant": f"{name}-{i}", "display_name": name})


def test_the_second_relay_waits_for_the_lock_and_takes_over_from_a_killed_one(log: Stack, creator: TenantCreator) -> None:
    with relay_on(log.settings) as first:
        wait_relayed(log.settings, creator.create(1))
        with second_relay(log.settings) as port:
            first.kill()
            eventually(lambda: is_ready(port), "the second took over")
            position = creator.create(20)
            eventually(lambda: (relay_health := health(port)) and relay_health["position"] >= position, "the second sends")
    check_complete(log.settings)


@pytest.mark.parametrize("busy", [True, False], ids=["while it sends", "while it has nothing to do"])
def test_a_relay_whose_lock_was_lost_ends_instead_of_sending_beside_the_next_one(log: Stack, creator: TenantCreator, busy: bool) -> None:
    stop = threading.Event()
    deciding = threading.Thread(target=lambda: [creator.create(20) for _ in iter(stop.is_set, True)])
    with relay_on(log.settings) as first:
        wait_relayed(log.settings, creator.create(1))
        with second_relay(log.settings) as port:
            if busy:
                deciding.start()
            try:
                (backend,) = holders(log.settings.store)
                with psycopg.connect(log.settings.store, autocommit=True) as connection:
                    connection.execute("SELECT pg_terminate_backend(%s)", (backend,))
                assert first.ended(NOTICED_S_MAX) == 1
                assert "the connection that held the lock is gone" in first.log.read_text()
                eventually(lambda: is_ready(port), "the second took over")
                assert len(holders(log.settings.store)) == 1
            finally:
                stop.set()
                if busy:
                    deciding.join(60)
            position = creator.create(5)
            eventually(lambda: (relay_health := health(port)) and relay_health["position"] >= position, "the second sends")
    check_complete(log.settings)


def _run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_a_lost_database_is_rebuilt_from_the_log(log: Stack, creator: TenantCreator, server: str) -> None:
    quota = ResourceQuota(replicas=1, cpu_millis=2, gpu_millis=3, memory_bytes=4)
    with relay_on(log.settings):
        creator.create(5)
        wait_relayed(log.settings, creator.set_quota("lost", quota))
    old = {e.position: (e.originator, e.version, e.name) for e in creator.store.notifications(0, 10**6)}
    url = database(server, "again")
    rebuild = [sys.executable, "-m", "cli.app", "store", "rebuild"]
    first, second = (_run(rebuild, environment(log.settings, STORE_URL=url)) for _ in range(2))
    assert (first.returncode, "rebuilt" in first.stdout) == (0, True), first.stdout
    assert (second.returncode, "is not empty" in second.stdout) == (1, True), second.stdout
    again = TenantCreator(log.settings.model_copy(update={"store_url": url}))
    try:
        rebuilt = {e.position: (e.originator, e.version, e.name) for e in again.store.notifications(0, 10**6)}
        kept = {p: e for p, e in old.items() if e[2] != QUOTA_EVENT}
        assert set(old) - set(kept), "the store's own events are not on the log"
        assert {p: e for p, e in rebuilt.items() if p in kept} == kept
        assert len(rebuilt) == len(kept) + 18  # the openings of the new epoch
        found = QuotasFromStore(again.store, again.codec).load("lost")
        assert (found.version, found.quota) == (0, quota_of(quota))
        with relay_on(log.settings, url):
            wait_relayed(log.settings, again.create(5))
    finally:
        again.close()
