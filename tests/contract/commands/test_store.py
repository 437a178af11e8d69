"""One contract for SQLite and Postgres stores: appended events stay, in one order, and of two with the same version one wins."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from access.principal import Principal
from commands.models import decide as model_decide
from commands.models.aggregate import MODEL
from commands.models.decide import AddVersion, RegisterModel, SubmitVersion
from commands.models.visibility import owned
from commands.processor.aggregates import Aggregates
from commands.processor.command_handler import CommandHandler, PendingCommand
from commands.processor.command_processor import CommandProcessor, Done
from commands.processor.context import CommandContext
from commands.processor.idempotency_store import KEPT_US, RepeatableRequest
from commands.processor.rejection import Rejected
from commands.relay.resume import OwnRecords, Sent, StoreMismatch, resume
from commands.store import opening
from commands.store.event_store import Answer, Conflict, Event, Store, open_store
from commands.store.generation import current_generation, decided_partitions
from commands.store.opening import open_generation, open_new_partitions
from commands.store.stored_record import unpack
from events.facts.accounts import Scope
from events.facts.fact import KeyId, ModelId, TenantId, UserId
from events.facts.models import Compliance, Registration, Technical, TensorSpec, VersionContent
from events.log.chain import FIRST, claim_of
from events.log.heartbeat import Heartbeat
from events.log.record import Record
from events.process.settings import Settings
from events.process.signing_keys import PublicKeys
from tests.contract.commands.conftest import Opener
from tests.support.todays_codec import RELAY_KEY, RELAY_KEYS, SETUP_KEY, RelayedLog, todays_codec


def event(originator: str, version: int, state: bytes = b"state", name: str = "Fact") -> Event:
    return Event(originator, version, name, state)


# --- the store


def test_events_are_read_as_they_were_written(store: Store) -> None:
    assert store.last_position() == 0
    positions = store.append([event("a", 1, b"\x00\xff"), event("a", 2), event("b", 1)])
    assert positions == sorted(set(positions))
    assert [(e.version, e.state) for e in store.events("a")] == [(1, b"\x00\xff"), (2, b"state")]
    assert [e.version for e in store.events("a", after=1)] == [2]
    assert store.events("nobody") == []
    last = store.last_event("a")
    assert last is not None
    assert last.version == 2
    assert store.positions("a", 1, 2) == positions[:2]
    assert store.last_position() == positions[-1]


def test_of_two_events_with_one_version_one_wins_and_nothing_of_the_other_is_kept(store: Store) -> None:
    store.append([event("a", 1)])
    with pytest.raises(Conflict):
        store.append([event("b", 1), event("a", 1, b"other")])
    assert store.events("b") == []
    assert [e.state for e in store.events("a")] == [b"state"]


def test_a_long_history_is_read_whole(store: Store) -> None:
    for start in range(1, 2502, 500):
        store.append([event("a", v) for v in range(start, start + 500)])
    assert [e.version for e in store.events("a")] == list(range(1, 3001))


def test_notifications_come_in_order_in_pages_and_by_name(store: Store) -> None:
    positions = store.append([event("a", v, name="Odd" if v % 2 else "Even") for v in range(1, 11)])
    page = store.notifications(0, 4)
    assert [n.position for n in page] == positions[:4]
    assert [n.version for n in store.notifications(page[-1].position, 100)] == list(range(5, 11))
    assert [n.version for n in store.notifications(0, 100, ("Even",), until=positions[5])] == [2, 4, 6]


def test_a_reader_that_follows_the_notifications_misses_nothing(opener: Opener) -> None:
    writers, each = 6, 40
    store, seen, done = opener(), list[tuple[str, int]](), threading.Event()

    def write(number: int) -> None:
        mine = opener()
        for version in range(1, each + 1):
            mine.append([event(f"w{number}", version)])

    def follow() -> None:
        position = 0
        while True:
            ended = done.is_set()
            page = store.notifications(position, 50)
            seen.extend((n.originator, n.version) for n in page)
            position = page[-1].position if page else position
            if ended and not page:
                return

    reader = threading.Thread(target=follow)
    reader.start()
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    done.set()
    reader.join(60)
    assert len(seen) == writers * each
    for number in range(writers):
        assert [v for o, v in seen if o == f"w{number}"] == list(range(1, each + 1))


def test_a_store_that_is_opened_again_has_everything(opener: Opener) -> None:
    first = opener()
    position = first.append([event("a", 1)])
    assert opener().positions("a", 1, 1) == position


def test_sqlite_flushes_every_commit_to_disk(tmp_path: Path) -> None:
    store = open_store(Settings(data=tmp_path))
    with store._recorder.datastore.transaction(commit=False) as c:  # pyright: ignore[reportPrivateUsage]
        c.execute("PRAGMA synchronous")
        assert c.fetchone()[0] == 2
        c.execute("PRAGMA journal_mode")
        assert c.fetchone()[0] == "wal"
    store.close()


# --- the processor over the store


CODEC = todays_codec()
X = TensorSpec(name="x", datatype="FP32", shape=(-1,))
TECHNICAL = Technical(format="onnx", framework="sklearn", precision="FP32", inputs=(X,), outputs=(X,))
COMPLIANCE = Compliance(licence="MIT", data_sources=("uci",), data_level="public")
NOW = 1_800_000_000_000_000
ids = itertools.count()


def context(now: int = NOW) -> CommandContext:
    return CommandContext(str(uuid.UUID(int=next(ids))), now, UserId("owner"), "cause", "correlation")


def register(model: str, **more: Any) -> PendingCommand[Any, Any]:
    registration = Registration(domain="d", team="t", name=model, scenario="s", task="t", compliance=COMPLIANCE)
    command = RegisterModel(ModelId(model), TenantId("acme"), UserId("o"), registration)
    return task(model, command, **more)


def add(model: str, version: str, framework: str = "sklearn", **more: Any) -> PendingCommand[Any, Any]:
    technical = TECHNICAL.model_copy(update={"framework": framework})  # which checks no bound
    content = VersionContent(technical=technical, artifact="sha256:" + "a" * 64)
    return task(model, AddVersion(version, 1, content), **more)


def task(model: str, command: Any, now: int = NOW, **more: Any) -> PendingCommand[Any, Any]:
    handler = CommandHandler[Any, Any](MODEL, model_decide.decide, lambda _state, _command: {"model": model})
    return PendingCommand(handler, model, command, context(now), None, **more)


@pytest.fixture
def processors(opener: Opener) -> Iterator[Callable[[], CommandProcessor]]:
    made: list[CommandProcessor] = []

    def make() -> CommandProcessor:
        store = opener()
        made.append(CommandProcessor(store, CODEC, Aggregates(store, CODEC)))
        return made[-1]

    yield make
    for processor in made:
        processor.close()


def done(processor: CommandProcessor, t: PendingCommand[Any, Any]) -> Done:
    outcome = processor.submit(t).result(30)
    assert isinstance(outcome, Done), outcome
    return outcome


def refused(processor: CommandProcessor, t: PendingCommand[Any, Any]) -> str:
    outcome = processor.submit(t).result(30)
    assert isinstance(outcome, Rejected), outcome
    return outcome.code


def test_of_many_concurrent_commands_on_one_version_exactly_one_wins(processors: Callable[[], CommandProcessor], store: Store) -> None:
    """Four processes, sixteen commands each, the same version of the same model: K, invariant 3."""
    four = [processors() for _ in range(4)]
    done(four[0], register("m"))
    futures = [processor.submit(add("m", "1.0.0", f"{i}/{j}")) for i in range(16) for j, processor in enumerate(four)]
    outcomes = [f.result(60) for f in futures]
    winners = [o for o in outcomes if isinstance(o, Done)]
    assert len(winners) == 1
    assert {o.code for o in outcomes if isinstance(o, Rejected)} <= {"version_exists", "contended"}
    assert [e.name for e in store.events("model/m")] == ["ModelRegistered", "ModelVersionAdded"]
    assert winners[0].facts[0].position == store.positions("model/m", 2, 2)[0]


def test_commands_on_different_aggregates_all_win_whoever_decides_them(processors: Callable[[], CommandProcessor], store: Store) -> None:
    two = [processors(), processors()]
    futures = [two[i % 2].submit(register(f"m{i}")) for i in range(60)]
    futures += [two[(i + 1) % 2].submit(add(f"m{i}", "1.0.0")) for i in range(0)]
    assert all(isinstance(f.result(60), Done) for f in futures)
    assert len(store.notifications(0, 1000, ("ModelRegistered",))) == 60


def test_each_process_decides_on_what_the_other_wrote(processors: Callable[[], CommandProcessor]) -> None:
    one, other = processors(), processors()
    done(one, register("m"))
    done(other, add("m", "1.0.0"))
    done(one, task("m", SubmitVersion("1.0.0")))
    assert refused(other, task("m", SubmitVersion("1.0.0"))) == "already_submitted"


def test_the_frames_are_finished_and_carry_the_aggregates_version(processors: Callable[[], CommandProcessor], store: Store) -> None:
    processor = processors()
    first, second = done(processor, register("m")), done(processor, add("m", "1.0.0"))
    for outcome, stored in zip((first, second), store.events("model/m"), strict=True):
        record = unpack(stored.state)
        name, body = CODEC.decode(record.frame)
        (written,) = outcome.facts
        assert (name, body["event_id"], body["version"]) == (written.name, written.event_id, written.version)
        assert (record.topic, record.key, record.headers["ce_id"]) == ("models", b"m", written.event_id.encode())


def test_if_match_refuses_what_was_decided_on_an_old_state(processors: Callable[[], CommandProcessor]) -> None:
    processor = processors()
    assert done(processor, register("m", if_match=0)).version == 1
    assert done(processor, add("m", "1.0.0", if_match=1)).version == 2
    assert refused(processor, add("m", "1.1.0", if_match=1)) == "version_changed"


def test_if_match_shows_nothing_to_another_tenant(processors: Callable[[], CommandProcessor]) -> None:
    processor = processors()
    done(processor, register("m"))

    other_tenant = Principal(TenantId("globex"), UserId("u"), KeyId("k"), frozenset[Scope]({"models"}), {}, {})
    handler = CommandHandler[Any, Any](MODEL, model_decide.decide, visible=owned)

    for if_match in (None, 0, 1, 7):
        asked = PendingCommand(handler, "m", SubmitVersion("1.0.0"), context(), other_tenant, if_match)
        assert refused(processor, asked) == refused(processor, add("nothing", "1.0.0", if_match=if_match)) == "model_unknown"


def test_one_key_and_one_body_is_one_command(processors: Callable[[], CommandProcessor], store: Store) -> None:
    one, other = processors(), processors()
    request = RepeatableRequest("acme", "key-1", "digest")
    first = done(one, register("m", request=request))
    for processor in (one, other):
        again = done(processor, register("m", request=request))
        assert (again.replayed, again.facts, again.body, again.version) == (True, first.facts, first.body, first.version)
    assert refused(one, register("m", request=RepeatableRequest("acme", "key-1", "another"))) == "idempotency_key_reused"
    assert done(one, register("m2", request=RepeatableRequest("globex", "key-1", "another"))).replayed is False
    assert [e.name for e in store.notifications(0)] == ["ModelRegistered", "ModelRegistered"]
    assert store.answers_count() == 2


def test_one_key_sent_many_times_at_once_is_one_command(processors: Callable[[], CommandProcessor], store: Store) -> None:
    three = [processors() for _ in range(3)]
    futures = [processor.submit(register("m", request=RepeatableRequest("acme", "k", "d"))) for _ in range(10) for processor in three]
    outcomes = [f.result(60) for f in futures]
    assert all(isinstance(o, Done) for o in outcomes), outcomes
    assert sum(1 for o in outcomes if isinstance(o, Done) and not o.replayed) == 1
    assert len({o.facts for o in outcomes if isinstance(o, Done)}) == 1
    assert (len(store.notifications(0)), store.answers_count()) == (1, 1)


def test_an_idempotency_key_is_kept_for_a_day_and_then_forgotten(processors: Callable[[], CommandProcessor]) -> None:
    processor, request = processors(), RepeatableRequest("acme", "k", "d")
    done(processor, register("m", request=request))
    day = 24 * 3600 * 1_000_000
    assert done(processor, register("m", now=NOW + day, request=request)).replayed
    assert refused(processor, register("m", now=NOW + KEPT_US + 1, request=request)) == "name_taken"
    assert done(processor, register("n", now=NOW + KEPT_US + 1, request=request)).replayed is False


def test_answers_that_expired_go_with_the_ones_that_come(processors: Callable[[], CommandProcessor], store: Store) -> None:
    """However many requests come in a year, the store holds the answers of two days."""
    processor, hours, an_hour = processors(), 200, 3600 * 1_000_000
    for hour in range(hours):
        done(processor, register(f"m{hour}", now=NOW + hour * an_hour, request=RepeatableRequest("acme", f"k{hour}", "d")))
    kept = KEPT_US // an_hour
    assert store.answers_count() == kept + 1
    assert len(store.notifications(0)) == hours
    assert done(processor, register("again", now=NOW + hours * an_hour, request=RepeatableRequest("acme", "k0", "d"))).replayed is False
    last = hours - 1
    newest = register(f"m{last}", now=NOW + last * an_hour, request=RepeatableRequest("acme", f"k{last}", "d"))
    assert done(processor, newest).replayed


def test_two_that_find_the_same_expired_answer_do_not_both_happen(opener: Opener) -> None:
    """Neither sees the other's before it writes."""
    one, other = opener(), opener()
    one.append([event("a", 1)], [Answer("r", NOW, NOW - KEPT_US, b"old")])
    later = NOW + KEPT_US + 1
    one.append([event("b", 1)], [Answer("r", later, later - KEPT_US, b"first")])
    with pytest.raises(Conflict):
        other.append([event("c", 1)], [Answer("r", later + 1, later + 1 - KEPT_US, b"second")])
    with pytest.raises(Conflict):
        other.append([], [Answer("r", later + 1, later + 1 - KEPT_US, b"second")])
    assert (one.answer("r"), one.events("c")) == ((later, b"first"), [])


def test_a_repeated_request_reads_what_it_made_and_not_the_rest_of_its_aggregate(
    processors: Callable[[], CommandProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, request = processors(), RepeatableRequest("acme", "k", "d")
    first = done(processor, register("m", request=request))
    for minor in range(20):
        done(processor, add("m", f"1.{minor}.0"))
    read, events = list[int](), Store.events

    def counted(store: Store, originator: str, after: int = 0, until: int | None = None) -> list[Event]:
        found = events(store, originator, after, until)
        read.append(len(found))
        return found

    monkeypatch.setattr(Store, "events", counted)
    assert done(processor, register("m", request=request)).facts == first.facts
    assert sum(read) == 1


def test_a_fact_that_is_too_large_is_refused_and_leaves_nothing(processors: Callable[[], CommandProcessor], store: Store) -> None:
    processor = processors()
    done(processor, register("m"))
    assert refused(processor, add("m", "1.0.0", "x" * (512 * 1024), request=RepeatableRequest("acme", "k", "d"))) == "fact_too_large"
    assert len(store.notifications(0)) == 1
    done(processor, add("m", "1.0.0", "x" * (511 * 1024), request=RepeatableRequest("acme", "k", "d")))


def test_a_rule_that_raises_fails_only_its_own_command(processors: Callable[[], CommandProcessor]) -> None:
    processor = processors()

    def broken(_state: Any, _command: Any, _context: CommandContext) -> Any:
        raise AssertionError("our mistake")

    bad = PendingCommand(CommandHandler[Any, Any](MODEL, broken), "m", None, context(), None)
    futures = [processor.submit(t) for t in (register("a"), bad, register("b"))]
    assert isinstance(futures[0].result(30), Done)
    assert isinstance(futures[2].result(30), Done)
    with pytest.raises(AssertionError, match="our mistake"):
        futures[1].result(30)


# --- the epoch


def test_a_store_opens_once_and_says_so_on_every_decided_partition(opener: Opener) -> None:
    stores = [opener() for _ in range(4)]
    assert current_generation(stores[0]) is None
    with ThreadPoolExecutor(4) as pool:
        epochs = list(pool.map(lambda s: open_generation(s, CODEC, UserId("commands")), stores))
    assert len({e.store for e in epochs}) == 1
    opened = [unpack(e.state) for e in stores[0].notifications(0)]
    assert [(e.topic, e.partition) for e in opened] == list(decided_partitions())
    assert all(CODEC.decode(e.frame)[1]["store"] == epochs[0].store for e in opened)
    assert epochs[0].position == stores[0].notifications(0, 1)[0].position


def test_a_topic_that_becomes_decided_later_gets_its_opening_once(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [opener() for _ in range(2)]
    before = [tp for tp in decided_partitions() if tp[0] != "producers"]
    with monkeypatch.context() as yesterday:
        yesterday.setattr(opening, "decided_partitions", lambda: iter(before))
        epoch = open_generation(stores[0], CODEC, UserId("commands"))
        assert open_new_partitions(stores[0], CODEC, UserId("commands")) == 0
    assert ("producers", 0) not in epoch.before
    assert resume(OwnRecords(stores[0], epoch, RELAY_KEYS, None), {})["producers", 0] == (0, FIRST), (
        "a relay of today can start before the opening is there"
    )
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda s: open_new_partitions(s, CODEC, UserId("commands")), stores))
    after = current_generation(stores[0])
    assert after is not None
    assert (after.store, after.position, set(after.before)) == (epoch.store, epoch.position, set(decided_partitions()))
    opened = [unpack(e.state) for e in stores[0].notifications(0)]
    assert [(e.topic, e.partition) for e in opened] == [*before, ("producers", 0)]


def test_records_that_no_relay_signed_are_skipped_and_signed_ones_that_are_not_ours_stop_the_relay(opener: Opener) -> None:
    store = opener()
    generation = open_generation(store, CODEC, UserId("commands"))
    event = store.notifications(0)[0]
    stored, tp = unpack(event.state), next(decided_partitions())
    ours, others = RelayedLog(generation.store), RelayedLog("another")
    opened = ours.record(tp, 0, event.position, stored.frame, key=stored.key)
    head = ours.heads[tp]

    def last(foreign: list[Record], sent: int = 0, store_id: str = generation.store) -> Sent:
        newest = Heartbeat(store_id, event.position, {f"{tp[0]}/{tp[1]}": sent}, 1)
        tails = [claim for r in [*foreign, opened] if (claim := claim_of(r, r.headers)) is not None]
        return resume(OwnRecords(store, generation, RELAY_KEYS, newest), {tp: tails})[tp]

    def relayed(by: RelayedLog, position: int, previous: bytes, *, signed: bool = True) -> Record:
        return by.record(tp, 9, position, b"x", previous=previous, signed=signed)

    assert last([]) == head
    for by in (ours, others):
        for position in (event.position, event.position + 1, 1 << 40):
            for previous in (FIRST, head[1], b"?" * 32):
                assert last([relayed(by, position, previous, signed=False)]) == head
        with pytest.raises(StoreMismatch):
            last([relayed(by, 1 << 40, head[1])])
    unsigned = replace(opened, headers=relayed(ours, event.position, FIRST, signed=False).headers)
    tails = [claim for r in [unsigned] if (claim := claim_of(r, r.headers)) is not None]
    assert resume(OwnRecords(store, generation, RELAY_KEYS, None), {tp: tails})[tp] == (0, FIRST), "it is sent once more, signed"
    replaced = OwnRecords(store, generation, PublicKeys([RELAY_KEY.public, SETUP_KEY.public]), None, SETUP_KEY.key_id)
    tails = [claim for r in [opened] if (claim := claim_of(r, r.headers)) is not None]
    assert resume(replaced, {tp: tails})[tp] == (event.position - 1, FIRST), "it is sent once more, with the new key"
