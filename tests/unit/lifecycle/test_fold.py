"""The fold accepts every fact in every state, and gives a reason for each fact that does not follow."""

from __future__ import annotations

import copy
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.facts.deployments import ServiceSpec
from events.facts.topics import FACTS, entries
from events.schema.trusted import trusted
from lifecycle import model as models
from lifecycle import status as statuses
from lifecycle.deployment import Deployment, NotDeployed, Serving, Shifting, Unloading, loaded, specs
from lifecycle.facts import LifecycleFact, fact_of
from lifecycle.misfit import Misfit
from lifecycle.model import ActiveModel, Draft, InReview, Model, NoModel, RetiredModel
from lifecycle.route import NOWHERE, in_service, route_of, unloaded_at
from lifecycle.status import GATEWAYS_KEPT, Degraded, DeploymentStatus, Failed, Loading, Ready
from tests.support.todays_codec import todays_codec

M = "model-vision-lab-digits"
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
HEAD = {"event_id": "00000000-0000-0000-0000-000000000001", "occurred_at": 7, "producer": "test", "version": 1, "by": "u", "model": M}
X = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
TECHNICAL = {"format": "onnx", "framework": "f", "precision": "FP32", "inputs": [X], "outputs": [X]}
SMALL, BIG = {"batch_max": 8}, {"batch_max": 9}
MEMBERS: dict[str, Any] = {
    "tenant": "acme",
    "owner": "o",
    "technical": TECHNICAL,
    "artifact": "sha256:" + "0" * 64,
    "artifact_bytes": 1,
    "spec": SMALL,
    "domain": "vision",
    "team": "lab",
    "name": "digits",
    "scenario": "s",
    "task": "t",
    "compliance": {"licence": "MIT", "data_sources": ["uci"], "data_level": "public"},
    "reason": "r",
    "review": "business",
    "verdict": "approved",
    "business_by": "b",
    "security_by": "s",
    "from_version": "1.0.0",
    "to_version": "1.1.0",
    "model_version": "1.0.0",
    "weight_percent": 20,
    "replicas": 1,
    "position": 99,
    "error_code": "broken",
    "message": "no",
    "gateway": "g",
    "epoch": "e",
    "weights": {"1.0.0": 100},
}


def fact(name: str, **members: Any) -> Any:
    """A fact of this name as the log's readers get it; members that do not matter are filled in."""
    known = FACTS[name].cls.model_fields
    body = {k: v for k, v in {**MEMBERS, **HEAD, **members}.items() if k in known}
    made = fact_of(name, body)
    assert made is not None
    return made


def model(*facts: Any) -> Model:
    now: Model = NoModel()
    for position, one in enumerate(facts, 1):
        after = models.evolve(now, one, position)
        assert not isinstance(after, Misfit), after
        now = after
    return now


def status(*facts: Any) -> DeploymentStatus:
    """Facts at the positions 1, 2, …"""
    now = DeploymentStatus()
    for position, one in enumerate(facts, 1):
        after = statuses.evolve(now, one, position)
        assert not isinstance(after, Misfit), after
        now = after
    return now


ADDED = (fact("ModelRegistered"), fact("ModelVersionAdded"))
DEPLOYED = (fact("VersionDeployed"), fact("VersionReady"))
TRIED = (*DEPLOYED, fact("RolloutStarted"), fact("VersionReady", model_version="1.1.0"))
PROMOTED = (*TRIED, fact("RolloutPromoted"))


def weights(now: DeploymentStatus, of: Model | None = None) -> dict[str, int]:
    return dict(route_of(of or model(*ADDED), now).weights)


def readiness(now: DeploymentStatus, version: str) -> str:
    return now.versions[version].readiness.kind


# --- every fact, every state

MODELS: tuple[Model, ...] = (
    NoModel(),
    model(ADDED[0]),
    model(*ADDED),
    model(*ADDED, fact("ModelVersionSubmitted")),
    model(*ADDED, fact("ModelVersionSubmitted"), fact("ModelVersionApproved")),
    model(*ADDED, fact("ModelRetired")),
)
STATUSES = (
    DeploymentStatus(),
    status(*DEPLOYED),
    status(*TRIED),
    status(*PROMOTED),
    status(*TRIED, fact("VersionUndeployed")),
    status(*DEPLOYED, fact("RouteApplied")),
)


def test_every_state_is_among_those_tried() -> None:
    assert {type(m) for m in MODELS} == set(get_args(Model))
    assert {type(v) for m in MODELS if not isinstance(m, NoModel) for v in m.versions.values()} == set(get_args(models.VersionState))
    assert {type(s.deployment) for s in STATUSES} == set(get_args(Deployment))


@pytest.mark.parametrize("name", [e.name for e in entries() if e.topic == "models" and e.name in FACTS])
def test_a_model_takes_every_fact_of_its_topic_and_is_not_changed_in_place(name: str) -> None:
    for state in MODELS:
        before = copy.deepcopy(state)
        after = models.evolve(state, fact(name), 5)
        assert isinstance(after, Model | Misfit) and state == before


@pytest.mark.parametrize("name", [e.name for e in entries() if e.topic == "deployments" and e.name in FACTS])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_deployment_takes_every_fact_of_its_topic_and_is_not_changed_in_place(name: str, version: str) -> None:
    for state in STATUSES:
        before = copy.deepcopy(state)
        for position in (0, 99):
            after = statuses.evolve(state, fact(name, model_version=version, to_version=version, position=position), 5)
            assert isinstance(after, DeploymentStatus | Misfit) and state == before


# --- the model half


def test_a_version_goes_from_draft_through_review_to_approved_and_a_rejection_returns_it() -> None:
    submitted = (*ADDED, fact("ModelVersionSubmitted", by="w"))
    reviewed = (*submitted, fact("ModelVersionReviewed", by="b"))
    back = model(*reviewed, fact("ModelVersionReviewed", review="security", verdict="rejected", by="s"))
    once, approved = model(*reviewed), model(*reviewed, fact("ModelVersionApproved"))
    assert isinstance(back, ActiveModel) and isinstance(once, ActiveModel) and isinstance(approved, ActiveModel)
    release = back.versions["1.0.0"].release
    assert back.versions["1.0.0"] == Draft(release)
    assert once.versions["1.0.0"] == InReview(release, "w", business_by="b")  # pyright: ignore[reportArgumentType]
    assert approved.versions["1.0.0"].kind == "approved"


def test_a_retired_model_stays_retired() -> None:
    retired = model(*ADDED, fact("ModelRetired", reason="old", successor="new"))
    assert isinstance(retired, RetiredModel) and (retired.reason, retired.successor, retired.position) == ("old", "new", 3)
    for name in ("ModelRegistered", "ModelVersionAdded", "ModelRetired"):
        assert isinstance(models.evolve(retired, fact(name), 4), Misfit)


# --- the deployment half


def test_a_rollback_to_a_version_that_is_not_loaded_leaves_the_calls_where_they_are_until_it_is_ready() -> None:
    back = (*PROMOTED, fact("VersionUndeployed"), fact("RolledBack", from_version="1.1.0", to_version="1.0.0"))
    now = status(*back)
    assert isinstance(now.deployment, Serving) and now.deployment.live == "1.0.0"
    assert (readiness(now, "1.0.0"), weights(now)) == ("loading", {"1.1.0": 100})
    assert weights(status(*back, fact("VersionReady"))) == {"1.0.0": 100}


def test_a_rollback_never_gives_the_calls_to_the_candidate_that_it_leaves() -> None:
    now = status(*TRIED, fact("RolledBack", from_version="1.1.0", to_version="1.2.0"))
    assert (readiness(now, "1.2.0"), weights(now)) == ("loading", {"1.0.0": 100})


def test_the_version_that_takes_the_calls_keeps_them_when_a_second_change_comes_before_the_first_is_ready() -> None:
    waiting = (*PROMOTED, fact("RolledBack", from_version="1.1.0", to_version="1.2.0"))
    assert weights(status(*waiting)) == {"1.1.0": 100}
    again = (*waiting, fact("RolloutStarted", from_version="1.2.0", to_version="1.0.0"))
    assert weights(status(*again)) == {"1.1.0": 80, "1.0.0": 20}
    assert weights(status(*again, fact("RolledBack", from_version="1.0.0", to_version="1.2.0"))) == {"1.1.0": 100}


def test_a_standby_version_that_is_tried_again_stays_ready() -> None:
    now = status(*PROMOTED, fact("RolloutStarted", from_version="1.1.0", to_version="1.0.0", spec=BIG))
    assert readiness(now, "1.0.0") == "ready"
    assert specs(now.deployment)["1.0.0"] == ServiceSpec(batch_max=9)


def test_a_version_rolled_back_to_runs_like_the_one_it_replaces() -> None:
    now = status(*DEPLOYED, fact("RolledBack", from_version="1.0.0", to_version="1.2.0"))
    assert specs(now.deployment) == {"1.2.0": ServiceSpec(batch_max=8), "1.0.0": ServiceSpec(batch_max=8)}


def test_a_report_of_an_earlier_deployment_changes_nothing_of_the_next() -> None:
    now = status(*PROMOTED, fact("VersionUndeployed"), fact("RolledBack", from_version="1.1.0", to_version="1.0.0"))  # position 7
    assert isinstance(statuses.evolve(now, fact("VersionReady", position=6), 0), Misfit)
    assert isinstance(statuses.evolve(now, fact("VersionReady", position=7), 0), DeploymentStatus)


def test_a_failed_candidate_takes_nothing_and_a_failed_live_version_stays_live() -> None:
    candidate = status(*TRIED, fact("VersionFailed", model_version="1.1.0"))
    assert (candidate.versions["1.1.0"].readiness, weights(candidate)) == (Failed("broken", "no"), {"1.0.0": 100})
    live = status(*DEPLOYED, fact("VersionFailed"))
    assert (live.versions["1.0.0"].readiness, weights(live)) == (Degraded(1, "broken", "no"), {"1.0.0": 100})
    assert status(*DEPLOYED, fact("VersionFailed"), fact("VersionReady", replicas=2)).versions["1.0.0"].readiness == Ready(2)
    assert weights(status(DEPLOYED[0], fact("VersionFailed"))) == {}


def test_a_retirement_unloads_the_live_version_first_and_ends_with_nothing_loaded() -> None:
    parts = [fact("VersionUndeployed", model_version=v) for v in ("1.0.0", "1.1.0")]
    assert isinstance(status(*TRIED, parts[0]).deployment, Unloading)
    now = status(*TRIED, *parts)
    assert (now.deployment, now.versions, now.unloaded) == (NotDeployed(), {}, {"1.0.0": 5, "1.1.0": 6})
    assert isinstance(status(*PROMOTED, fact("VersionUndeployed", model_version="1.1.0")).deployment, Serving)


def test_a_retired_model_takes_no_calls_before_its_versions_are_unloaded() -> None:
    retired, now = model(*ADDED, fact("ModelRetired")), status(*TRIED)
    assert (route_of(retired, now), in_service(retired, now)) == (NOWHERE, ())
    assert unloaded_at(retired, now) == {"1.0.0": 3, "1.1.0": 3}
    assert unloaded_at(retired, status(*TRIED, fact("VersionUndeployed"))) == {"1.0.0": 5, "1.1.0": 3}


def test_a_version_loaded_again_starts_anew() -> None:
    again = (*PROMOTED, fact("VersionUndeployed"), fact("RolloutStarted", from_version="1.1.0", to_version="1.0.0"))
    assert (status(*again[:-1]).unloaded, status(*again).unloaded) == ({"1.0.0": 6}, {})
    assert (status(*again).versions["1.0.0"].since, status(*again).versions["1.0.0"].readiness) == (7, Loading())


def test_gateways_that_come_and_go_do_not_make_a_status_grow() -> None:
    now = status(*(fact("RouteApplied", gateway=g) for n in range(3 * GATEWAYS_KEPT) for g in ("old", f"g{n}")))
    assert len(now.applied) == GATEWAYS_KEPT and "old" in now.applied


def any_fact(name: str, version: str, to: str, share: int, position: int) -> LifecycleFact:
    return fact(name, model_version=version, to_version=to, weight_percent=share, position=position)


STEPS = st.lists(
    st.builds(
        any_fact,
        st.sampled_from([e.name for e in entries() if e.topic == "deployments" and e.name in FACTS]),
        st.sampled_from(VERSIONS),
        st.sampled_from(VERSIONS),
        st.integers(0, 100),
        st.integers(0, 40),
    ),
    max_size=40,
)


@given(STEPS)
def test_after_any_facts_a_route_names_only_ready_versions_and_its_weights_add_up(facts: list[LifecycleFact]) -> None:
    now = DeploymentStatus()
    for position, one in enumerate(facts, 1):
        after = statuses.evolve(now, one, position)  # pyright: ignore[reportArgumentType]
        now = now if isinstance(after, Misfit) else after
        assert tuple(now.versions) == loaded(now.deployment)
        assert not now.unloaded.keys() & now.versions.keys()
        route = route_of(model(*ADDED), now)
        for split in (route.weights, route.steady):
            assert sum(w for _, w in split) in (0, 100)
            assert all(now.versions[v].ready for v, _ in split)
        assert (route.weights == ()) == (route.steady == ())
        if isinstance(now.deployment, Shifting) and route.canary:
            assert route.canary == now.deployment.candidate


# --- facts without validation


@pytest.mark.parametrize("cls", get_args(LifecycleFact))
def test_a_trusted_fact_equals_the_validated_one(cls: type[LifecycleFact]) -> None:
    made = fact(cls.__name__)
    validated = cls.model_validate_json(json.dumps(made.model_dump(mode="json")))
    assert made == validated and made.model_dump() == validated.model_dump() and made.model_fields_set
    frame = todays_codec().encode(validated)
    name, body = todays_codec().decode(frame)
    assert fact_of(name, {**body, "position": 5} if "position" not in body else body) == validated


def test_the_facts_of_a_models_life_are_all_those_of_its_two_topics() -> None:
    expected = {e.name for e in entries() if e.topic in ("models", "deployments") and e.name in FACTS}
    assert {cls.__name__ for cls in get_args(LifecycleFact)} == expected
    assert fact_of("ApiKeyIssued", {}) is None


def test_a_state_comes_back_from_its_json() -> None:
    for one in (*MODELS, *STATUSES):
        plain = json.loads(json.dumps(_plain(one)))
        assert trusted(type(one), plain) == one


def _plain(value: Any) -> Any:
    import orjson

    return orjson.loads(orjson.dumps(value, default=vars))


def test_a_part_takes_the_defaults_that_its_writer_did_not_know_and_a_lacking_member_is_an_error() -> None:
    assert trusted(ServiceSpec, {"batch_max": 3}) == ServiceSpec(batch_max=3)
    with pytest.raises(KeyError):
        fact_of("VersionReady", {"model": M})
