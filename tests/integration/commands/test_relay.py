"""The relay skips nothing and repeats nothing that a fold would not recognise: killed, doubled, or on the wrong store (K3, K4, K5)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from commands.relay.relay import Relay
from commands.store.event_store import open_store
from events.facts.topics import FACTS
from events.log.client import RECORD_BYTES_MAX, LogBroken, Writer
from events.log.fold_runner import FoldRunner
from events.log.sign_in import client_config
from events.process.settings import Settings
from events.schema.examples import example_of
from infra.launcher import Stack
from infra.launcher.ports import free_block
from tests.support.command_processes import Process
from tests.support.decided_log import check_chain, check_complete, read_log
from tests.support.polling import eventually, health, is_ready
from tests.support.stacks import prepared_log, reached_from_elsewhere
from tests.support.tenant_creator import TenantCreator, wait_relayed

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with prepared_log(tmp_path_factory.mktemp("relay")) as stack:
        yield stack


@contextmanager
def largest_record(settings: Settings, topic: str, bytes_max: int) -> Generator[None]:
    """Meanwhile the broker refuses larger batches to this topic."""

    def set_largest(size: int) -> None:
        admin = AdminClient(client_config(settings))
        entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
        for future in admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])]).values():
            future.result(60)

    set_largest(bytes_max)
    try:
        yield
    finally:
        set_largest(RECORD_BYTES_MAX)


@pytest.fixture
def creator(log: Stack) -> Iterator[TenantCreator]:
    creator = TenantCreator(log.settings)
    yield creator
    creator.close()


@pytest.fixture
def relay(log: Stack) -> Iterator[Process]:
    process = Process("commands.relay.relay", log.settings)
    yield process
    process.stop()


def test_the_relay_imports_neither_codec_nor_registry() -> None:
    program = "import sys, commands.relay.relay; print('\\n'.join(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert "events.log.client" in modules
    for forbidden in ("events.schema.codec", "events.log.schemas", "fastavro", "confluent_kafka.schema_registry", "confluent_kafka.avro"):
        assert forbidden not in modules


def test_everything_decided_arrives_in_order_and_a_fold_follows_it(log: Stack, creator: TenantCreator, relay: Process) -> None:
    relay.start()
    wait_relayed(log.settings, creator.create(100))
    assert check_complete(log.settings).copies == 0

    names = FactNames([])
    fold_runner = FoldRunner(log.settings, creator.codec, creator.log_id, ("accounts", "prices"), names, name="names")
    try:
        fold_runner.start()
        eventually(lambda: fold_runner.ready and names.seen.count("TenantCreated") == 100, "the fold has all")
        assert names.seen.count("PriceBookPublished") == 100
    finally:
        fold_runner.stop()


def test_a_heartbeat_says_what_is_on_every_partition(log: Stack, creator: TenantCreator, relay: Process) -> None:
    relay.start()
    position = creator.create(5)
    wait_relayed(log.settings, position)
    tails: dict[str, int] = {}
    for record in check_chain(log.settings).records.values():
        at = f"{record.topic}/{record.partition}"
        tails[at] = max(tails.get(at, 0), record.position)

    def found() -> bool:
        last = max(read_log(log.settings, "heartbeats"), key=lambda r: r.offset)
        heartbeat = json.loads(last.value)
        return heartbeat["position"] == position and heartbeat["sent"] == tails

    eventually(found, "a heartbeat of everything")
    count = len(read_log(log.settings, "heartbeats"))
    eventually(lambda: len(read_log(log.settings, "heartbeats")) >= count + 2, "an idle relay goes on writing heartbeats")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_while_it_sends_it_goes_on_and_nothing_is_skipped(log: Stack, creator: TenantCreator, relay: Process, kills: int) -> None:
    done = threading.Event()
    positions: list[int] = []

    def work() -> None:
        while not done.is_set():
            positions.append(creator.create(30))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(kills):
            relay.start()
            eventually(lambda: is_ready(log.settings.relay_health_port), "the relay is at work")
            began_at = health(log.settings.relay_health_port)["position"]
            eventually(lambda began_at=began_at: health(log.settings.relay_health_port)["position"] > began_at, "it sends")
            relay.kill()
    finally:
        done.set()
        worker.join(120)
    relay.start()
    wait_relayed(log.settings, positions[-1])
    check_complete(log.settings)


@pytest.mark.timeout(600)
def test_while_kafka_is_down_the_relay_waits_and_then_goes_on(log: Stack, creator: TenantCreator, relay: Process) -> None:
    relay.start()
    wait_relayed(log.settings, creator.create(20))
    pid = next(p.pid for p in log.status().parts if p.name == "kafka")
    os.kill(pid, signal.SIGKILL)
    position = creator.create(300)
    eventually(lambda: any(p.name == "kafka" and p.healthy and p.pid != pid for p in log.status().parts), "Kafka is back")

    def sent() -> bool:  # it may have ended on an error it must not survive: then it is started again, as its supervisor does
        assert relay.running is not None
        if relay.running.poll() is not None:
            assert relay.running.returncode == 1
            relay.start()
        return health(log.settings.relay_health_port)["position"] >= position

    eventually(sent, "everything is sent", 300)
    check_complete(log.settings)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_a_record_that_kafka_refuses_ends_the_relay_and_the_next_one_leaves_no_gap(
    log: Stack, creator: TenantCreator, relay: Process, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """The broker takes small records only, for a while. One in the middle is large; alone in its batch, so that those behind it would pass."""
    relay.start()
    wait_relayed(log.settings, creator.create(1))
    relay.stop()
    with monkeypatch.context() as patched:
        patched.setattr("commands.relay.relay.Writer", partial(Writer, extra={"batch.num.messages": 1}))
        for _ in range(rounds):
            creator.create(20)
            creator.create(1, key_bytes=3000)
            newest = creator.create(20)
            with largest_record(log.settings, "accounts", 2000), closing(open_store(log.settings)) as store:
                stop = threading.Event()
                doomed, late = Relay(log.settings, store, stop), threading.Timer(60, stop.set)
                late.start()
                with pytest.raises(LogBroken):
                    doomed.run()
                late.cancel()
            assert doomed.progress.position < newest
            check_chain(log.settings)
    relay.start()
    wait_relayed(log.settings, creator.create(1))
    check_complete(log.settings)


def test_two_relays_at_once_make_copies_and_no_gap(log: Stack, creator: TenantCreator) -> None:
    """Without the lock that keeps the second one waiting. Both begin at the same tail, before there is anything to send: so each sends all."""
    before = check_chain(log.settings).copies
    stop = threading.Event()
    stores = [open_store(log.settings) for _ in range(2)]
    relays = [Relay(log.settings, store, stop) for store in stores]
    threads = [threading.Thread(target=r.run) for r in relays]
    start = creator.create(1)
    for t in threads:
        t.start()
    try:
        eventually(lambda: all(r.progress.status == "ready" and r.progress.position >= start for r in relays), "both at the tail")
        position = 0
        for _ in range(5):
            position = creator.create(60)
        eventually(lambda: all(r.progress.position >= position for r in relays), "both at the end")
    finally:
        stop.set()
        for t in threads:
            t.join(60)
        for store in stores:
            store.close()
    assert check_complete(log.settings).copies - before >= 5 * 60 * 2


def test_the_second_relay_waits_for_its_turn_and_takes_over(log: Stack, creator: TenantCreator, relay: Process) -> None:
    relay.start()
    wait_relayed(log.settings, creator.create(1))
    with free_block() as other_ports:
        # The same log and store, other ports: only the health page of the second differs.
        elsewhere = {name.upper(): value for name, value in reached_from_elsewhere(log.settings, "relay").items()}
        elsewhere["BASE_PORT"] = str(other_ports)
        second = Process("commands.relay.relay", log.settings, elsewhere).start()
        try:
            port = other_ports + 8
            eventually(lambda: "another relay" in health(port)["message"], "the second waits")
            assert health(port)["status"] == "starting"
            relay.kill()
            eventually(lambda: is_ready(port), "the second took over")
            position = creator.create(20)
            eventually(lambda: (found := health(port)) and found["position"] >= position, "the second sends")
        finally:
            second.stop()
    check_complete(log.settings)


def test_observed_records_at_the_tail_are_skipped(log: Stack, creator: TenantCreator, relay: Process) -> None:
    relay.start()
    wait_relayed(log.settings, creator.create(1))
    relay.kill()
    writer = Writer(log.settings, "gateway")
    frame = creator.codec.encode(example_of(FACTS["RouteApplied"]))
    garbage = {"store": b"x", "position": b"not a number", "previous_sha256": bytes(32)}
    for partition in range(4):
        for _ in range(600):
            writer.append("deployments", b"m", frame, {"ce_type": b"RouteApplied"}, partition)
        writer.append("deployments", b"m", b"garbage", garbage, partition)
    assert writer.flush(30)
    writer.close()
    relay.start()
    wait_relayed(log.settings, creator.create(10))
    relay.kill(signal.SIGTERM)
    positions = [r for r in read_log(log.settings, "deployments") if r.headers.get("store", b"x") != b"x"]
    assert sorted(r.position for r in positions) == sorted({r.position for r in positions})


def test_an_outdated_store_is_refused_and_nothing_is_sent(log: Stack, creator: TenantCreator, relay: Process, tmp_path: Path) -> None:
    relay.start()
    wait_relayed(log.settings, creator.create(3))
    yesterday = tmp_path / "events.sqlite"
    with creator.store._recorder.datastore.get_connection(commit=False) as c:  # pyright: ignore[reportPrivateUsage]
        c.cursor().execute(f"VACUUM INTO '{yesterday}'")
    wait_relayed(log.settings, creator.create(3))
    relay.kill()
    before = len(read_log(log.settings, "accounts", "prices"))
    url = f"sqlite:///{yesterday}"

    restored = Process("commands.relay.relay", log.settings, {"STORE_URL": url}).start()
    assert restored.ended() == 2
    message = _last_message(restored.log)
    assert "which this store does not have" in message
    assert "python -m commands.store.rebuild" in message

    # Worse: it has decided other things meanwhile, so that the position exists.
    other = TenantCreator(log.settings.model_copy(update={"store_url": url}))
    other.create(20)
    other.close()
    diverged = Process("commands.relay.relay", log.settings, {"STORE_URL": url}).start()
    assert diverged.ended() == 2
    assert "decided something else there" in _last_message(diverged.log)

    # A store that never wrote to this log.
    foreign = Process("commands.relay.relay", log.settings, {"STORE_URL": f"sqlite:///{tmp_path / 'new' / 'events.sqlite'}"})
    stranger = TenantCreator(log.settings.model_copy(update={"store_url": foreign.more["STORE_URL"]}))
    stranger.close()
    foreign.start()
    assert foreign.ended() == 2
    assert "this is store" in _last_message(foreign.log)

    # The command API takes no decision into a store that the log does not know: not into yesterday's, and not into an empty one.
    for lost in (url, f"sqlite:///{tmp_path / 'lost' / 'events.sqlite'}"):
        api = Process("commands.api", log.settings, {"STORE_URL": lost}).start()
        assert api.ended() == 1
        assert "python -m commands.store.rebuild" in api.log.read_text()
    assert len(read_log(log.settings, "accounts", "prices")) == before
    check_complete(log.settings)
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_a_lost_store_is_rebuilt_from_the_log_and_folds_go_on(log: Stack, creator: TenantCreator, relay: Process, tmp_path: Path) -> None:
    relay.start()
    wait_relayed(log.settings, creator.create(5))
    relay.kill(signal.SIGTERM)
    old = {e.position: e for e in creator.store.notifications(0, 10**6)}
    more = {"STORE_URL": f"sqlite:///{tmp_path / 'again' / 'events.sqlite'}"}
    rebuild = Process("commands.store.rebuild", log.settings, more).start()
    assert rebuild.ended() == 0, rebuild.log.read_text()
    settings = log.settings.model_copy(update={"store_url": more["STORE_URL"]})
    again = TenantCreator(settings)
    try:
        rebuilt = {e.position: e for e in again.store.notifications(0, 10**6)}
        assert {p: (e.originator, e.version, e.name) for p, e in rebuilt.items() if p in old} == {
            p: (e.originator, e.version, e.name) for p, e in old.items()
        }
        assert len(rebuilt) == len(old) + 18  # the openings of the new epoch
        position = again.create(5)
        anew = Process("commands.relay.relay", log.settings, more).start()
        try:
            wait_relayed(log.settings, position)
            _follows(log.settings, creator, sum(1 for e in old.values() if e.name == "TenantCreated") + 5)
        finally:
            anew.stop()
    finally:
        again.close()


def _follows(settings: Settings, creator: TenantCreator, tenants: int) -> None:
    """While a relay runs: a fold is fresh only as long as heartbeats arrive."""
    folded: list[str] = []
    fold_runner = FoldRunner(settings, creator.codec, creator.log_id, ("accounts", "prices"), FactNames(folded), name="after-rebuild")
    try:
        fold_runner.start()
        eventually(lambda: fold_runner.ready and folded.count("TenantCreated") == tenants, "a fold follows from one store to the next")
    finally:
        fold_runner.stop()


class FactNames:
    """A fold that keeps the facts it is given."""

    code_version = "1"

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def apply(self, name: str, body: dict[str, object], at: object) -> None:
        self.seen.append(name)

    def dump(self) -> bytes:
        return json.dumps(self.seen).encode()

    def load(self, state: bytes) -> None:
        self.seen[:] = json.loads(state)


def _last_message(log: Path) -> str:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return str(next(line["message"] for line in reversed(lines) if line["level"] == "error"))
