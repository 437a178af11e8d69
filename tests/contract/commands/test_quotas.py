"""Quotas where commands are decided, on SQLite and Postgres: they hold whichever processes decide, and follow from the log alone."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from commands.deployments.decide import DeployVersion, RollBack, StartRollout, UndeployVersion
from commands.deployments.routes import CHANGE, START
from commands.models import decide as model_decide
from commands.models.aggregate import MODEL
from commands.models.decide import AddVersion, RegisterModel, RetireModel, ReviewVersion, SubmitVersion
from commands.processor.aggregates import Aggregates
from commands.processor.command_handler import CommandHandler, PendingCommand
from commands.processor.command_processor import CommandProcessor, Done, Outcome
from commands.processor.context import CommandContext
from commands.processor.idempotency_store import RepeatableRequest
from commands.processor.quotas_from_store import QuotasFromStore, quota_originator
from commands.processor.rejection import Rejected
from commands.store.event_store import QUOTA_EVENT, Store, open_store
from commands.store.generation import current_generation
from commands.store.opening import open_generation
from commands.store.rebuild import rebuild
from commands.store.stored_record import unpack
from commands.tenants.decide import CreateTenant, SetQuota
from commands.tenants.routes import CREATE, SET_QUOTA
from events.facts.accounts import ResourceQuota, TenantQuotaSet, TenantTerms
from events.facts.deployments import ServiceSpec
from events.facts.fact import ModelId, TenantId, UserId
from events.facts.models import Compliance, Registration, Technical, TensorSpec, VersionContent
from events.log.record import Record
from events.process.settings import Settings
from lifecycle.resources import QUOTA_DEFAULT, Resources
from tests.contract.commands.conftest import Opener
from tests.support.todays_codec import RELAY_KEYS, RelayedLog, todays_codec

CODEC = todays_codec()
TENANT = "acme"
X = TensorSpec(name="x", datatype="FP32", shape=(-1,))
TECHNICAL = Technical(format="onnx", framework="sklearn", precision="FP32", inputs=(X,), outputs=(X,))
COMPLIANCE = Compliance(licence="MIT", data_sources=("uci",), data_level="public")
NOW = 1_800_000_000_000_000
MIB = 1 << 20
SPEC = ServiceSpec(replicas_max=2, cpu_millis=500, memory_bytes=64 * MIB)
EACH = Resources(2, 1000, 0, 128 * MIB)
ids = itertools.count(1)
of_model = CommandHandler[Any, Any](MODEL, model_decide.decide)


def pending(handler: Any, key: str, command: Any, by: str = "owner", **more: Any) -> PendingCommand[Any, Any]:
    context = CommandContext(str(uuid.UUID(int=next(ids))), NOW, UserId(by), "cause", "correlation")
    return PendingCommand(handler, key, command, context, None, **more)


def deploy(model: str, version: str = "1.0.0", spec: ServiceSpec = SPEC, **more: Any) -> PendingCommand[Any, Any]:
    return pending(START, model, DeployVersion(version, spec), **more)


def quota(**amounts: int) -> PendingCommand[Any, Any]:
    unlimited = {"replicas": 10**6, "cpu_millis": 10**9, "gpu_millis": 10**9, "memory_bytes": 1 << 50}
    return pending(SET_QUOTA, TENANT, SetQuota(ResourceQuota(**(unlimited | amounts)), "because"))


def done(processor: CommandProcessor, command: PendingCommand[Any, Any]) -> Done:
    outcome = processor.submit(command).result(30)
    assert isinstance(outcome, Done), outcome
    return outcome


def refused(processor: CommandProcessor, command: PendingCommand[Any, Any]) -> Rejected:
    outcome = processor.submit(command).result(30)
    assert isinstance(outcome, Rejected), outcome
    return outcome


def approved(processor: CommandProcessor, model: str, *versions: str, tenant: str = TENANT) -> None:
    registration = Registration(domain="d", team="t", name=model, scenario="s", task="t", compliance=COMPLIANCE)
    done(processor, pending(of_model, model, RegisterModel(ModelId(model), TenantId(tenant), UserId("o"), registration)))
    for version in versions or ("1.0.0",):
        content = VersionContent(technical=TECHNICAL, artifact="sha256:" + "a" * 64)
        done(processor, pending(of_model, model, AddVersion(version, 1, content)))
        done(processor, pending(of_model, model, SubmitVersion(version)))
        done(processor, pending(of_model, model, ReviewVersion(version, "business", "approved"), by="bea"))
        done(processor, pending(of_model, model, ReviewVersion(version, "security", "approved"), by="sam"))


class MeetingStore(Store):
    """Lets a test hold a process between its decision and its append."""

    def __init__(self, store: Store) -> None:
        super().__init__(store._recorder, store.url)  # pyright: ignore[reportPrivateUsage]
        self.before_append: Callable[[], object] = lambda: None

    def append(self, events: Any, answers: Any = ()) -> list[int]:
        self.before_append()
        return super().append(events, answers)


def held_until(event: threading.Event) -> PendingCommand[Any, Any]:
    """A command that changes nothing and holds the processor: what is submitted behind it is decided together."""

    def wait(_state: Any, _command: Any, _context: CommandContext) -> tuple[()]:
        assert event.wait(20)
        return ()

    return pending(CommandHandler[Any, Any](MODEL, wait), "m0", None)


Process = tuple[CommandProcessor, MeetingStore]


@pytest.fixture
def processes(opener: Opener) -> Iterator[Callable[[], Process]]:
    made: list[CommandProcessor] = []

    def make() -> Process:
        store = MeetingStore(opener())
        made.append(CommandProcessor(store, CODEC, Aggregates(store, CODEC)))
        return made[-1], store

    yield make
    for processor in made:
        processor.close()


@pytest.fixture
def processor(processes: Callable[[], Process]) -> CommandProcessor:
    processor, store = processes()
    open_generation(store, CODEC, UserId("commands"))
    done(processor, pending(CREATE, TENANT, CreateTenant(TenantId(TENANT), TenantTerms(display_name="Acme"))))
    return processor


def at_once(processes: Callable[[], Process], *commands: PendingCommand[Any, Any]) -> list[Outcome]:
    """Each decided by a process of its own, and none stored before all are decided."""
    meeting = threading.Barrier(len(commands), timeout=20)
    futures = []
    for command in commands:
        processor, store = processes()
        first = iter([meeting.wait])

        def once(first: Iterator[Callable[[], object]] = first) -> None:
            next(first, lambda: None)()

        store.before_append = once
        futures.append(processor.submit(command))
    return [future.result(60) for future in futures]


def used(processor: CommandProcessor) -> Resources:
    return processor.quotas.load(TENANT).used


def test_two_processes_that_deploy_two_models_at_once_do_not_both_pass_the_quota(
    processor: CommandProcessor, processes: Callable[[], Process], opener: Opener
) -> None:
    for model in ("m1", "m2"):
        approved(processor, model)
    done(processor, quota(replicas=3))
    outcomes = at_once(processes, deploy("m1"), deploy("m2"))
    assert sorted(type(o).__name__ for o in outcomes) == ["Done", "Rejected"]
    (rejected,) = (o for o in outcomes if isinstance(o, Rejected))
    assert (rejected.code, rejected.ground) == ("quota_exceeded", "conflict")
    assert used(processor) == EACH
    assert len(opener().notifications(0, names=("VersionDeployed",))) == 1


def test_where_both_fit_both_pass_though_they_are_decided_at_once(processor: CommandProcessor, processes: Callable[[], Process]) -> None:
    for model in ("m1", "m2"):
        approved(processor, model)
    done(processor, quota(replicas=4))
    assert all(isinstance(o, Done) for o in at_once(processes, deploy("m1"), deploy("m2")))
    assert used(processor) == EACH + EACH


def test_a_deployment_decided_before_a_lower_quota_and_stored_after_it_is_refused(
    processor: CommandProcessor, processes: Callable[[], Process], opener: Opener
) -> None:
    """Whoever reads the log finds no deployment that the quota before it did not allow."""
    approved(processor, "m1")
    deciding, store = processes()
    decided, go_on = threading.Event(), threading.Event()

    def held() -> None:
        decided.set()
        assert go_on.wait(20)

    store.before_append = held
    late = deciding.submit(deploy("m1"))
    assert decided.wait(20)
    done(processor, quota(replicas=1))
    go_on.set()
    outcome = late.result(20)
    assert isinstance(outcome, Rejected)
    assert outcome.code == "quota_exceeded"
    assert opener().notifications(0, names=("VersionDeployed",)) == []


def test_other_tenants_do_not_wait_for_each_others_quota(processor: CommandProcessor, processes: Callable[[], Process]) -> None:
    approved(processor, "m1")
    approved(processor, "m2", tenant="globex")
    done(processor, quota(replicas=2))
    assert all(isinstance(o, Done) for o in at_once(processes, deploy("m1"), deploy("m2")))
    assert processor.quotas.load("globex").quota == QUOTA_DEFAULT
    assert (used(processor), processor.quotas.load("globex").used) == (EACH, EACH)


def test_many_processes_and_models_never_pass_the_quota(processor: CommandProcessor, processes: Callable[[], Process]) -> None:
    models = [f"m{i}" for i in range(12)]
    for model in models:
        approved(processor, model)
    done(processor, quota(replicas=7))
    three = [processes()[0] for _ in range(3)]
    outcomes = [f.result(60) for f in [three[i % 3].submit(deploy(model)) for i, model in enumerate(models)]]
    codes = {o.code for o in outcomes if isinstance(o, Rejected)}
    assert codes <= {"quota_exceeded", "contended"}
    count = sum(isinstance(o, Done) for o in outcomes)
    assert (count <= 3, used(processor).replicas) == (True, 2 * count)
    for model, outcome in zip(models, outcomes, strict=True):
        if isinstance(outcome, Rejected) and used(processor).replicas < 6:
            done(processor, deploy(model))
    assert used(processor).replicas == 6


def test_commands_that_are_stored_together_count_one_after_another(processor: CommandProcessor, processes: Callable[[], Process]) -> None:
    """Also what one of them gives back."""
    deciding, store = processes()
    appends = list[int]()
    store.before_append = lambda: appends.append(1)
    for model in ("m0", "m1", "m2", "m3"):
        approved(processor, model)
    done(processor, deploy("m0"))
    done(processor, quota(replicas=4))
    hold = threading.Event()
    held = deciding.submit(held_until(hold))
    group = [deciding.submit(c) for c in (deploy("m1"), deploy("m2"), pending(of_model, "m0", RetireModel("old")), deploy("m3"))]
    hold.set()
    held.result(20)
    first, second, third, last = (f.result(20) for f in group)
    assert isinstance(first, Done) and isinstance(third, Done) and isinstance(last, Done)
    assert isinstance(second, Rejected)
    assert len(appends) == 1
    assert used(processor) == EACH + EACH


def test_what_is_refused_beside_a_command_that_was_not_stored_is_decided_again(
    processor: CommandProcessor, processes: Callable[[], Process]
) -> None:
    """The first takes the last room, so the second is refused; then the first is refused, since another process retired its model."""
    for model in ("m0", "m1", "m2"):
        approved(processor, model)
    done(processor, quota(replicas=2))
    deciding, store = processes()
    hold = threading.Event()

    def retires() -> None:
        store.before_append = lambda: None
        done(processor, pending(of_model, "m1", RetireModel("old")))

    store.before_append = retires
    deciding.submit(held_until(hold))
    first, second = deciding.submit(deploy("m1")), deciding.submit(deploy("m2"))
    hold.set()
    outcome = first.result(20)
    assert isinstance(outcome, Rejected)
    assert outcome.code == "model_retired"
    assert isinstance(second.result(20), Done)
    assert used(processor) == EACH


def test_what_is_unloaded_is_given_back_and_what_stays_loaded_is_not(processor: CommandProcessor) -> None:
    approved(processor, "m1", "1.0.0", "1.1.0")
    approved(processor, "m2")
    done(processor, quota(replicas=4))
    done(processor, deploy("m1"))
    done(processor, pending(START, "m1", StartRollout("1.1.0", 20)))
    assert used(processor) == EACH + EACH  # two versions run
    assert refused(processor, deploy("m2")).code == "quota_exceeded"
    done(processor, pending(CHANGE, "m1", RollBack("slow")))
    assert used(processor) == EACH + EACH  # the candidate stays loaded
    done(processor, pending(CHANGE, "m1", UndeployVersion("1.1.0", "not needed")))
    assert used(processor) == EACH
    done(processor, deploy("m2"))
    done(processor, pending(of_model, "m1", RetireModel("old")))
    done(processor, pending(of_model, "m2", RetireModel("old")))
    assert used(processor) == Resources()


def test_going_back_to_a_loaded_version_is_never_refused_and_to_another_one_takes_its_place_in_the_quota(
    processor: CommandProcessor,
) -> None:
    approved(processor, "m1", "1.0.0", "1.1.0", "1.2.0")
    done(processor, deploy("m1"))
    done(processor, pending(START, "m1", StartRollout("1.1.0", 20)))
    done(processor, quota(replicas=1))
    assert refused(processor, pending(CHANGE, "m1", RollBack("slow", "1.2.0"))).code == "quota_exceeded"
    done(processor, pending(CHANGE, "m1", RollBack("slow")))


def test_a_quota_below_what_is_used_stops_nothing_and_refuses_what_is_asked_for_next(processor: CommandProcessor, opener: Opener) -> None:
    approved(processor, "m1", "1.0.0", "1.1.0")
    approved(processor, "m2")
    done(processor, deploy("m1"))
    before = opener().last_position()
    done(processor, quota(replicas=1))
    assert [e.name for e in opener().notifications(before)] == ["TenantQuotaSet", QUOTA_EVENT]
    now = processor.quotas.load(TENANT)
    assert (now.used.replicas, now.quota.replicas) == (2, 1)
    (violation,) = refused(processor, deploy("m2")).violations
    assert violation.field == "spec.replicas_max"
    assert "2 now, 4 with this, quota 1" in violation.message
    assert refused(processor, pending(START, "m1", StartRollout("1.1.0", 20))).code == "quota_exceeded"
    done(processor, quota())
    done(processor, deploy("m2"))


def test_a_repeated_request_is_answered_again_and_counts_once(processor: CommandProcessor, processes: Callable[[], Process]) -> None:
    approved(processor, "m1")
    done(processor, quota(replicas=2))
    request = RepeatableRequest(TENANT, "key", "digest")
    outcomes = at_once(processes, deploy("m1", request=request), deploy("m1", request=request))
    assert sorted(o.replayed for o in outcomes if isinstance(o, Done)) == [False, True]
    assert done(processor, deploy("m1", request=request)).replayed
    assert used(processor) == EACH


def test_an_append_whose_answer_was_lost_is_known_again(processor: CommandProcessor, processes: Callable[[], Process]) -> None:
    """Postgres may lose the connection after the commit, and the library sends again: the conflict is with ourselves."""
    approved(processor, "m1")
    done(processor, quota(replicas=2))
    deciding, store = processes()
    store_append = Store.append

    class Twice(MeetingStore):
        def append(self, events: Any, answers: Any = ()) -> list[int]:
            store_append(self, events, answers)
            return store_append(self, events, answers)

    store.__class__ = Twice
    done(deciding, deploy("m1"))
    assert used(processor) == EACH


# --- from the log


def relayed(store: Store, *forged: tuple[int, TenantQuotaSet]) -> list[Record]:
    """The log as the relay of this store writes it; after that many records, one that somebody else wrote."""
    generation = current_generation(store)
    assert generation is not None
    log, records, offsets = RelayedLog(generation.store), list[Record](), dict[tuple[str, int], int]()
    strangers = dict(forged)
    events = [e for e in store.notifications(0) if e.name != QUOTA_EVENT]
    for number, event in enumerate(events):
        stored = unpack(event.state)
        tp = stored.topic, stored.partition
        if number in strangers and tp[0] == "accounts":
            value = CODEC.encode(strangers[number])
            head = log.heads[tp][1]
            offset = offsets[tp] = offsets.get(tp, -1) + 1
            records.append(log.record(tp, offset, event.position, value, key=TENANT.encode(), previous=head, signed=False))
        offset = offsets[tp] = offsets.get(tp, -1) + 1
        records.append(log.record(tp, offset, event.position, stored.frame, key=stored.key))
    return sorted(records, key=lambda r: (r.topic, r.partition, r.offset))


@pytest.fixture
def lived(processor: CommandProcessor, opener: Opener) -> Store:
    """A store with deployments, rollouts, what was given back, and two quotas."""
    approved(processor, "m1", "1.0.0", "1.1.0")
    approved(processor, "m2")
    approved(processor, "m3")
    approved(processor, "g1", tenant="globex")
    for command in (
        deploy("m1"),
        quota(replicas=50),
        pending(START, "m1", StartRollout("1.1.0", 20, ServiceSpec(replicas_max=3, gpu_millis=500))),
        deploy("m2"),
        deploy("g1"),
        pending(of_model, "m2", RetireModel("old")),
        quota(replicas=9, gpu_millis=2000),
        deploy("m3"),
    ):
        done(processor, command)
    return opener()


def test_a_store_rebuilt_from_the_log_has_the_same_quota_and_use_and_goes_on(lived: Store, opener: Opener, tmp_path: Any) -> None:
    again = open_store(Settings(data=tmp_path, store_url=f"sqlite:///{tmp_path / 'again.sqlite'}"))
    assert rebuild(again, CODEC, relayed(lived), UserId("rebuild"), RELAY_KEYS) > 0
    before, after = QuotasFromStore(lived, CODEC), QuotasFromStore(again, CODEC)
    for tenant in (TENANT, "globex"):
        old, new = before.load(tenant), after.load(tenant)
        assert (new.quota, new.used) == (old.quota, old.used)
        assert new.version == 0, "marks are the store's own, and begin again with it"
    assert before.load(TENANT).used == Resources(2 + 3 + 2, 1000 + 300 + 1000, 1500, 2 * 128 * MIB + 3 * 256 * MIB)
    processor = CommandProcessor(again, CODEC, Aggregates(again, CODEC))
    try:
        approved(processor, "m4", "1.0.0")
        done(processor, deploy("m4"))
        assert [e.version for e in again.events(quota_originator(TENANT))] == [1]
        approved(processor, "m5")
        assert refused(processor, deploy("m5")).code == "quota_exceeded"
    finally:
        processor.close()
        again.close()


def test_a_quota_that_somebody_else_wrote_on_the_log_is_not_believed(lived: Store, tmp_path: Any) -> None:
    events = [e for e in lived.notifications(0) if e.name != QUOTA_EVENT]
    last = max(number for number, e in enumerate(events) if e.name == "TenantQuotaSet")
    forged = TenantQuotaSet(
        event_id=str(uuid.UUID(int=7)),
        occurred_at=NOW,
        producer="commands",
        version=3,
        replicas=10**6,
        cpu_millis=10**9,
        gpu_millis=10**9,
        memory_bytes=1 << 60,
        tenant=TenantId(TENANT),
        reason="mine",
        by=UserId("admin"),
    )
    again = open_store(Settings(data=tmp_path, store_url=f"sqlite:///{tmp_path / 'again.sqlite'}"))
    records = relayed(lived, (last, forged))
    assert len(records) == len(events) + 1
    rebuild(again, CODEC, records, UserId("rebuild"), RELAY_KEYS)
    assert QuotasFromStore(again, CODEC).load(TENANT).quota == QuotasFromStore(lived, CODEC).load(TENANT).quota
    again.close()
