"""A model's traffic, as sentences."""

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
from events.facts.models import Compliance, Lineage, ModelRetired, Technical, TensorSpec
from lifecycle.deployment import NotDeployed, Serving, Shifting, Unloading, loaded
from lifecycle.model import ActiveModel
from lifecycle.state import Lifecycle, evolve

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0")
X = TensorSpec(name="x", datatype="FP32", shape=(-1,))
TECHNICAL = Technical(format="onnx", framework="sklearn", precision="FP32", inputs=(X,), outputs=(X,))
COMPLIANCE = Compliance(licence="MIT", data_sources=("uci",), data_level="public")
BIG = ServiceSpec(replicas_max=4)


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def by(user: str) -> CommandContext:
    return CommandContext("00000000-0000-4000-8000-000000000000", 1, UserId(user), "", "")


def decide(state: Lifecycle, command: Any, user: str = "ops") -> Any:
    lifecycle = isinstance(command, RegisterModel | AddVersion | SubmitVersion | ReviewVersion | RetireModel)
    return (model_decide if lifecycle else deployment_decide).decide(state, command, by(user))


def after(state: Lifecycle, *commands: Any, user: str = "ops") -> Lifecycle:
    for command in commands:
        facts = decide(state, command, user)
        assert not isinstance(facts, Rejected), (command, facts)
        for fact in facts:
            state = evolve(state, fact)
    return state


def approved(*versions: str) -> Lifecycle:
    model = ModelId("model-vision-lab-digits")
    state = after(Lifecycle(), RegisterModel(model, TenantId("acme"), "vision", "lab", "digits", "s", "t", UserId("o"), "", (), COMPLIANCE))
    for v in versions:
        state = after(state, AddVersion(v, TECHNICAL, digest(v), 1, "", Lineage()), SubmitVersion(v), user="owner")
        state = after(state, ReviewVersion(v, "business", "approved"), user="bea")
        state = after(state, ReviewVersion(v, "security", "approved"), user="sam")
    return state


def deployment(state: Lifecycle) -> Any:
    assert isinstance(state.model, ActiveModel)
    return state.deployment


def refused(decision: object) -> str:
    assert isinstance(decision, Rejected), decision
    assert all(v.remedy for v in decision.violations)
    return decision.code


ALL = approved(*VERSIONS)
LIVE = after(ALL, DeployVersion("1.0.0", BIG))
CANARY = after(LIVE, StartRollout("1.1.0", 20))
PROMOTED = after(CANARY, PromoteRollout())


def test_only_an_approved_version_takes_calls() -> None:
    draft = after(approved(), AddVersion("1.0.0", TECHNICAL, digest("x"), 1, "", Lineage()))
    assert refused(decide(draft, DeployVersion("1.0.0", BIG))) == "not_approved"
    assert (
        refused(decide(after(LIVE, AddVersion("2.0.0", TECHNICAL, digest("x"), 1, "", Lineage())), StartRollout("2.0.0", 5)))
        == "not_approved"
    )
    assert refused(decide(LIVE, RollBack("bad", "9.9.9"))) == "version_unknown"


def test_the_first_version_is_deployed_and_later_ones_are_rolled_out() -> None:
    (fact,) = decide(ALL, DeployVersion("1.0.0", BIG))
    assert isinstance(fact, VersionDeployed)
    assert (fact.tenant, fact.artifact, fact.spec) == ("acme", digest("1.0.0"), BIG)
    assert refused(decide(LIVE, DeployVersion("1.1.0", BIG))) == "already_deployed"
    assert refused(decide(ALL, StartRollout("1.0.0", 20))) == "not_deployed"


def test_a_rollout_without_a_spec_runs_like_the_live_version() -> None:
    (fact,) = decide(LIVE, StartRollout("1.1.0", 20))
    assert isinstance(fact, RolloutStarted)
    assert (fact.from_version, fact.to_version, fact.weight_percent, fact.spec) == ("1.0.0", "1.1.0", 20, BIG)


@pytest.mark.parametrize("weight", [0, 100, -1, 101])
def test_a_share_is_between_1_and_99_percent(weight: int) -> None:
    assert refused(decide(LIVE, StartRollout("1.1.0", weight))) == "weight_out_of_range"
    assert refused(decide(CANARY, AdvanceRollout(weight))) == "weight_out_of_range"


def test_one_rollout_at_a_time() -> None:
    assert refused(decide(CANARY, StartRollout("1.2.0", 20))) == "rollout_under_way"
    assert refused(decide(LIVE, StartRollout("1.0.0", 20))) == "already_live"
    for command in (AdvanceRollout(30), PromoteRollout()):
        assert refused(decide(LIVE, command)) == "no_rollout"


def test_a_share_advances_and_is_promoted_and_the_old_version_stays_loaded() -> None:
    assert deployment(after(CANARY, AdvanceRollout(60))).weight_percent == 60
    assert refused(decide(CANARY, AdvanceRollout(20))) == "weight_unchanged"
    assert deployment(PROMOTED) == Serving("1.1.0", {"1.0.0": BIG}, BIG, before="1.0.0")


def test_rolling_back_a_canary_gives_all_calls_to_the_live_version() -> None:
    (fact,) = decide(CANARY, RollBack("slow"))
    assert isinstance(fact, RolledBack)
    assert (fact.from_version, fact.to_version, fact.reason) == ("1.1.0", "1.0.0", "slow")
    assert deployment(after(CANARY, RollBack("slow"))) == Serving("1.0.0", {"1.1.0": BIG}, BIG)


def test_one_step_goes_back_to_any_approved_version() -> None:
    assert deployment(after(PROMOTED, RollBack("wrong"))).live == "1.0.0"
    assert deployment(after(PROMOTED, RollBack("wrong", "1.4.0"))).live == "1.4.0"
    assert set(loaded(deployment(after(CANARY, RollBack("wrong", "1.4.0"))))) == {"1.4.0", "1.0.0", "1.1.0"}
    assert refused(decide(PROMOTED, RollBack("wrong", "1.1.0"))) == "already_live"
    assert refused(decide(LIVE, RollBack("wrong"))) == "nothing_to_go_back_to"
    assert refused(decide(ALL, RollBack("wrong"))) == "not_deployed"


def test_going_back_twice_never_goes_forward_to_what_was_left() -> None:
    for state, live in ((after(CANARY, RollBack("slow")), "1.0.0"), (after(PROMOTED, RollBack("wrong")), "1.0.0")):
        assert deployment(state).live == live
        assert refused(decide(state, RollBack("slow"))) == "nothing_to_go_back_to"
        assert deployment(after(state, RollBack("I mean it", "1.1.0"))).live == "1.1.0"
    unloaded = after(PROMOTED, UndeployVersion("1.0.0", "done"))
    assert refused(decide(unloaded, RollBack("wrong"))) == "nothing_to_go_back_to"


def test_only_a_standby_version_is_unloaded() -> None:
    assert deployment(after(PROMOTED, UndeployVersion("1.0.0", "done"))) == Serving("1.1.0", {}, BIG)
    for version in ("1.0.0", "1.1.0"):
        assert refused(decide(CANARY, UndeployVersion(version, "x"))) == "takes_calls"
    assert refused(decide(PROMOTED, UndeployVersion("1.5.0", "x"))) == "not_loaded"
    assert refused(decide(ALL, UndeployVersion("1.0.0", "x"))) == "not_loaded"


def test_not_every_version_stays_in_memory() -> None:
    state = PROMOTED
    for version in VERSIONS[2:LOADED_MAX]:
        state = after(state, StartRollout(version, 50), PromoteRollout())
    assert len(loaded(deployment(state))) == LOADED_MAX
    assert refused(decide(state, StartRollout("1.4.0", 50))) == "too_many_loaded"
    assert not isinstance(decide(state, StartRollout("1.0.0", 50)), Rejected)  # loaded already
    assert not isinstance(decide(state, RollBack("wrong", "1.4.0")), Rejected)  # going back never fails for want of room


def test_retiring_unloads_everything_that_is_loaded() -> None:
    state = after(PROMOTED, StartRollout("1.2.0", 5))
    first, *unloads = decide(state, RetireModel("old"))
    assert isinstance(first, ModelRetired)
    assert all(isinstance(f, VersionUndeployed) for f in unloads)
    assert {f.model_version for f in unloads} == {"1.0.0", "1.1.0", "1.2.0"}
    gone = after(state, RetireModel("old"))
    assert refused(decide(gone, DeployVersion("1.0.0", BIG))) == "model_retired"
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
def test_whatever_is_asked_a_loaded_version_stays_loaded_until_it_is_undeployed_and_one_is_live(commands: list[Any]) -> None:
    state: Lifecycle = ALL
    for command in commands:
        facts = decide(state, command)
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


def test_the_rules_import_no_client() -> None:
    """Rules are functions on values: nothing in them can reach a database, a socket or a clock."""
    commands = Path(__file__).resolve().parents[3] / "commands"
    pure = ("decide.py", "state.py", "compatibility.py", "semver.py", "records.py", "producers.py", "four_eyes.py")
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
