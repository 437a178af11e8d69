"""Decisions about a model's deployment: which version takes which share of the calls."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from commands.deployments import decide as deployment_decide
from commands.deployments.decide import (
    LOADED_MAX,
    AdvanceRollout,
    DeployVersion,
    PromoteRollout,
    RollBack,
    StartRollout,
    UndeployVersion,
)
from commands.models import decide as model_decide
from commands.models.decide import AddVersion, RegisterModel, RetireModel, ReviewVersion, SubmitVersion
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected
from events.facts.deployments import RolledBack, RolloutStarted, ServiceSpec, VersionDeployed, VersionUndeployed
from events.facts.fact import ModelId, TenantId, UserId
from events.facts.models import Compliance, ModelRetired, Registration, Technical, TensorSpec, VersionContent
from lifecycle.deployment import NotDeployed, Serving, Shifting, Unloading, loaded
from lifecycle.model import ActiveModel
from lifecycle.state import Lifecycle, evolve
from tests.support.decisions import given

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0")
X = TensorSpec(name="x", datatype="FP32", shape=(-1,))
TECHNICAL = Technical(format="onnx", framework="sklearn", precision="FP32", inputs=(X,), outputs=(X,))
COMPLIANCE = Compliance(licence="MIT", data_sources=("uci",), data_level="public")
REGISTRATION = Registration(domain="vision", team="lab", name="digits", scenario="s", task="t", compliance=COMPLIANCE)
BIG = ServiceSpec(replicas_max=4)


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


class LifecycleDecider:
    """The commands of a model and of its deployment decide on one state."""

    @staticmethod
    def decide(state: Lifecycle, command: Any, context: CommandContext) -> Any:
        of_model = isinstance(command, RegisterModel | AddVersion | SubmitVersion | ReviewVersion | RetireModel)
        return (model_decide if of_model else deployment_decide).decide(state, command, context)

    evolve = staticmethod(evolve)


LIFECYCLE = LifecycleDecider()


def approved(*versions: str) -> Lifecycle:
    model = ModelId("model-vision-lab-digits")
    state = given(LIFECYCLE, Lifecycle(), RegisterModel(model, TenantId("acme"), UserId("o"), REGISTRATION)).state
    for v in versions:
        state = given(
            LIFECYCLE,
            state,
            ("owner", AddVersion(v, 1, VersionContent(technical=TECHNICAL, artifact=digest(v)))),
            ("owner", SubmitVersion(v)),
        ).state
        state = given(LIFECYCLE, state, ("bea", ReviewVersion(v, "business", "approved"))).state
        state = given(LIFECYCLE, state, ("sam", ReviewVersion(v, "security", "approved"))).state
    return state


def deployment(state: Lifecycle) -> Any:
    assert isinstance(state.model, ActiveModel)
    return state.deployment


ALL = approved(*VERSIONS)
LIVE = given(LIFECYCLE, ALL, DeployVersion("1.0.0", BIG)).state
CANARY = given(LIFECYCLE, LIVE, StartRollout("1.1.0", 20)).state
PROMOTED = given(LIFECYCLE, CANARY, PromoteRollout()).state


def test_only_an_approved_version_takes_calls() -> None:
    draft = given(LIFECYCLE, approved(), AddVersion("1.0.0", 1, VersionContent(technical=TECHNICAL, artifact=digest("x"))))
    draft.when(DeployVersion("1.0.0", BIG)).then_rejected("not_approved")
    added = given(LIFECYCLE, LIVE, AddVersion("2.0.0", 1, VersionContent(technical=TECHNICAL, artifact=digest("x"))))
    added.when(StartRollout("2.0.0", 5)).then_rejected("not_approved")
    given(LIFECYCLE, LIVE).when(RollBack("bad", "9.9.9")).then_rejected("version_unknown")


def test_the_first_version_is_deployed_and_later_ones_are_rolled_out() -> None:
    (fact,) = given(LIFECYCLE, ALL).when(DeployVersion("1.0.0", BIG)).facts
    assert isinstance(fact, VersionDeployed)
    assert (fact.tenant, fact.artifact, fact.spec) == ("acme", digest("1.0.0"), BIG)
    given(LIFECYCLE, LIVE).when(DeployVersion("1.1.0", BIG)).then_rejected("already_deployed")
    given(LIFECYCLE, ALL).when(StartRollout("1.0.0", 20)).then_rejected("not_deployed")


def test_a_rollout_without_a_spec_runs_like_the_live_version() -> None:
    (fact,) = given(LIFECYCLE, LIVE).when(StartRollout("1.1.0", 20)).facts
    assert isinstance(fact, RolloutStarted)
    assert (fact.from_version, fact.to_version, fact.weight_percent, fact.spec) == ("1.0.0", "1.1.0", 20, BIG)


@pytest.mark.parametrize("weight", [0, 100, -1, 101])
def test_a_share_is_between_1_and_99_percent(weight: int) -> None:
    given(LIFECYCLE, LIVE).when(StartRollout("1.1.0", weight)).then_rejected("weight_out_of_range")
    given(LIFECYCLE, CANARY).when(AdvanceRollout(weight)).then_rejected("weight_out_of_range")


def test_one_rollout_at_a_time() -> None:
    given(LIFECYCLE, CANARY).when(StartRollout("1.2.0", 20)).then_rejected("rollout_under_way")
    given(LIFECYCLE, LIVE).when(StartRollout("1.0.0", 20)).then_rejected("already_live")
    for command in (AdvanceRollout(30), PromoteRollout()):
        given(LIFECYCLE, LIVE).when(command).then_rejected("no_rollout")


def test_a_share_advances_and_is_promoted_and_the_old_version_stays_loaded() -> None:
    assert deployment(given(LIFECYCLE, CANARY, AdvanceRollout(60)).state).weight_percent == 60
    given(LIFECYCLE, CANARY).when(AdvanceRollout(20)).then_rejected("weight_unchanged")
    assert deployment(PROMOTED) == Serving("1.1.0", {"1.0.0": BIG}, BIG, before="1.0.0")


def test_rolling_back_a_canary_gives_all_calls_to_the_live_version() -> None:
    (fact,) = given(LIFECYCLE, CANARY).when(RollBack("slow")).facts
    assert isinstance(fact, RolledBack)
    assert (fact.from_version, fact.to_version, fact.reason) == ("1.1.0", "1.0.0", "slow")
    assert deployment(given(LIFECYCLE, CANARY, RollBack("slow")).state) == Serving("1.0.0", {"1.1.0": BIG}, BIG)


def test_one_step_goes_back_to_any_approved_version() -> None:
    assert deployment(given(LIFECYCLE, PROMOTED, RollBack("wrong")).state).live == "1.0.0"
    assert deployment(given(LIFECYCLE, PROMOTED, RollBack("wrong", "1.4.0")).state).live == "1.4.0"
    assert set(loaded(deployment(given(LIFECYCLE, CANARY, RollBack("wrong", "1.4.0")).state))) == {"1.4.0", "1.0.0", "1.1.0"}
    given(LIFECYCLE, PROMOTED).when(RollBack("wrong", "1.1.0")).then_rejected("already_live")
    given(LIFECYCLE, LIVE).when(RollBack("wrong")).then_rejected("nothing_to_go_back_to")
    given(LIFECYCLE, ALL).when(RollBack("wrong")).then_rejected("not_deployed")


def test_going_back_twice_never_goes_forward_to_what_was_left() -> None:
    for state, live in (
        (given(LIFECYCLE, CANARY, RollBack("slow")).state, "1.0.0"),
        (given(LIFECYCLE, PROMOTED, RollBack("wrong")).state, "1.0.0"),
    ):
        assert deployment(state).live == live
        given(LIFECYCLE, state).when(RollBack("slow")).then_rejected("nothing_to_go_back_to")
        assert deployment(given(LIFECYCLE, state, RollBack("I mean it", "1.1.0")).state).live == "1.1.0"
    unloaded = given(LIFECYCLE, PROMOTED, UndeployVersion("1.0.0", "done")).state
    given(LIFECYCLE, unloaded).when(RollBack("wrong")).then_rejected("nothing_to_go_back_to")


def test_only_a_standby_version_is_unloaded() -> None:
    assert deployment(given(LIFECYCLE, PROMOTED, UndeployVersion("1.0.0", "done")).state) == Serving("1.1.0", {}, BIG)
    for version in ("1.0.0", "1.1.0"):
        given(LIFECYCLE, CANARY).when(UndeployVersion(version, "x")).then_rejected("takes_calls")
    given(LIFECYCLE, PROMOTED).when(UndeployVersion("1.5.0", "x")).then_rejected("not_loaded")
    given(LIFECYCLE, ALL).when(UndeployVersion("1.0.0", "x")).then_rejected("not_loaded")


def test_not_every_version_stays_in_memory() -> None:
    state = PROMOTED
    for version in VERSIONS[2:LOADED_MAX]:
        state = given(LIFECYCLE, state, StartRollout(version, 50), PromoteRollout()).state
    assert len(loaded(deployment(state))) == LOADED_MAX
    given(LIFECYCLE, state).when(StartRollout("1.4.0", 50)).then_rejected("too_many_loaded")
    given(LIFECYCLE, state).when(StartRollout("1.0.0", 50)).then_accepted()  # loaded already
    given(LIFECYCLE, state).when(
        RollBack("wrong", "1.4.0")
    ).then_accepted()  # a rollback is never refused because too many versions are loaded


def test_retiring_unloads_everything_that_is_loaded() -> None:
    state = given(LIFECYCLE, PROMOTED, StartRollout("1.2.0", 5)).state
    first, *unloads = given(LIFECYCLE, state).when(RetireModel("old")).facts
    assert isinstance(first, ModelRetired)
    assert all(isinstance(f, VersionUndeployed) for f in unloads)
    assert {f.model_version for f in unloads} == {"1.0.0", "1.1.0", "1.2.0"}
    gone = given(LIFECYCLE, state, RetireModel("old")).state
    given(LIFECYCLE, gone).when(DeployVersion("1.0.0", BIG)).then_rejected("model_retired")
    assert gone.version == state.version + 4


COMMANDS = st.one_of(
    st.builds(DeployVersion, st.sampled_from(VERSIONS), st.just(BIG)),
    st.builds(StartRollout, st.sampled_from(VERSIONS), st.integers(-1, 101)),
    st.builds(AdvanceRollout, st.integers(-1, 101)),
    st.just(PromoteRollout()),
    st.builds(RollBack, st.just("r"), st.sampled_from(("", *VERSIONS))),
    st.builds(UndeployVersion, st.sampled_from(VERSIONS), st.just("r")),
)


@for_all(st.lists(COMMANDS, max_size=25))
def test_after_any_commands_a_loaded_version_stays_loaded_until_undeployed_and_one_is_live(commands: list[Any]) -> None:
    state: Lifecycle = ALL
    for command in commands:
        facts = given(LIFECYCLE, state).when(command).outcome
        if isinstance(facts, Rejected):
            continue
        before = set(loaded(deployment(state)))
        for fact in facts:
            state = evolve(state, fact)
        now = deployment(state)
        gone = before - set(loaded(now))
        assert gone == ({command.model_version} if isinstance(command, UndeployVersion) else set())
        assert len(loaded(now)) == len(set(loaded(now))) <= LOADED_MAX + 1
        match now:
            case NotDeployed():
                assert not before
            case Serving():
                assert now.live not in now.standby
            case Shifting():
                assert 1 <= now.weight_percent <= 99
                assert now.candidate != now.live
            case Unloading():
                raise AssertionError("only a retirement unloads the live version")
            case _:
                raise AssertionError(f"no state of a deployment: {now}")


def test_the_rules_import_no_client() -> None:
    """Rules are functions on values: they use no database, no socket and no clock."""
    commands = Path(__file__).resolve().parents[3] / "commands"
    pure = ("decide.py", "state.py", "tenant_quota.py", "compatibility.py", "semver.py", "records.py", "producers.py", "four_eyes.py")
    paths = [path for name in pure for path in commands.glob(f"*/{name}")]
    assert len(paths) >= 9
    for path in paths:
        source = path.read_text()
        for word in (
            "import time",
            "import random",
            "datetime.now",
            "now_us(",
            "new_id(",
            "commands.store.event_store",
            "events.log.client",
            "fastapi",
        ):
            assert word not in source, f"{path.name} uses {word}"
