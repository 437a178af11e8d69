"""Decisions about a model, its versions and their reviews: given facts, when a command comes, then facts or a refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from commands.models import decide as model_decide
from commands.models.compatibility import differences
from commands.models.decide import AddVersion, RegisterModel, RetireModel, ReviewVersion, SubmitVersion
from commands.models.semver import SemVer, parse
from events.facts.fact import ModelId, ModelVersion, TenantId, UserId
from events.facts.models import (
    Compliance,
    Lineage,
    ModelRegistered,
    ModelVersionApproved,
    ModelVersionReviewed,
    Registration,
    Technical,
    TensorSpec,
    VersionContent,
)
from lifecycle.state import Lifecycle, evolve
from tests.support.decisions import NOW, Given, given

MODEL = ModelId("model-vision-lab-digits")
DIGEST = "sha256:" + "a" * 64


def tensor(name: str = "x", datatype: Any = "FP32", shape: tuple[int, ...] = (-1, 64)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def technical(inputs: tuple[TensorSpec, ...] = (tensor(),), outputs: tuple[TensorSpec, ...] = (tensor("y"),)) -> Technical:
    return Technical(format="onnx", framework="sklearn", precision="FP32", inputs=inputs, outputs=outputs)


COMPLIANCE = Compliance(licence="MIT", data_sources=("uci",), data_level="public")
REGISTRATION = Registration(domain="vision", team="lab", name="digits", scenario="post", task="classification", compliance=COMPLIANCE)
REGISTER = RegisterModel(MODEL, TenantId("acme"), UserId("owner"), REGISTRATION)


def add(version: str, **changes: Any) -> AddVersion:
    """`changes` of the command, or of what the version is."""
    content: dict[str, Any] = {"technical": technical(), "artifact": DIGEST}
    content |= {name: changes.pop(name) for name in VersionContent.model_fields if name in changes}
    return replace(AddVersion(version, 10, VersionContent(**content)), **changes)


def test_a_newer_version_may_not_stop_accepting_nan() -> None:
    allowed = technical((TensorSpec(name="x", datatype="FP32", shape=(-1, 64), nan_allowed=True),))
    assert differences(allowed, technical()) == ("input 'x' took NaN and infinity, now only finite numbers",)
    assert differences(technical(), allowed) == ()


class LifecycleDecider:
    decide, evolve = staticmethod(model_decide.decide), staticmethod(evolve)


LIFECYCLE = LifecycleDecider()


def lifecycle(*steps: tuple[str, Any]) -> Given[Lifecycle]:
    """A model that was not registered before, after these (user, command)."""
    return given(LIFECYCLE, Lifecycle(), *steps)


SUBMITTED = (("owner", REGISTER), ("owner", add("1.0.0")), ("owner", SubmitVersion("1.0.0")))
BUSINESS = ReviewVersion("1.0.0", "business", "approved")
SECURITY = ReviewVersion("1.0.0", "security", "approved")
APPROVED = (*SUBMITTED, ("bea", BUSINESS), ("sam", SECURITY))


def test_a_registration_takes_the_name_and_says_who_and_why() -> None:
    (fact,) = lifecycle().when(REGISTER, "owner").facts
    assert isinstance(fact, ModelRegistered)
    assert (fact.model, fact.tenant, fact.version, fact.producer) == (MODEL, "acme", 1, "commands")
    assert (fact.causation_id, fact.correlation_id, fact.occurred_at) == ("cause", "correlation", NOW)


def test_deciding_twice_gives_the_same_event_ids() -> None:
    assert lifecycle().when(REGISTER, "owner").outcome == lifecycle().when(REGISTER, "owner").outcome


def test_a_name_is_given_once() -> None:
    lifecycle(("owner", REGISTER)).when(REGISTER, "owner").then_rejected("name_taken")


def test_a_retired_name_is_never_given_away_again() -> None:
    lifecycle(("owner", REGISTER), ("owner", RetireModel("old"))).when(REGISTER, "owner").then_rejected("name_taken")


def test_nothing_happens_to_a_model_that_does_not_exist() -> None:
    for command in (add("1.0.0"), SubmitVersion("1.0.0"), BUSINESS, RetireModel("old")):
        lifecycle().when(command, "owner").then_rejected("model_unknown")


def test_a_version_is_never_changed() -> None:
    state = lifecycle(("owner", REGISTER), ("owner", add("1.0.0")))
    state.when(add("1.0.0"), "owner").then_rejected("version_exists")
    state.when(add("1.0.0", artifact="sha256:" + "b" * 64), "owner").then_rejected("version_exists")
    state.when(add("1.0.0+build.2"), "owner").then_rejected("version_exists")


@pytest.mark.parametrize("text", ["1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0 ", "1.0.0\n", "", "1.0.0-" + "a" * 70, "١.0.0"])
def test_what_is_no_semver_is_no_version(text: str) -> None:
    lifecycle(("owner", REGISTER)).when(add(text), "owner").then_rejected("version_not_semver")


def test_versions_rank_as_semver_says() -> None:
    ranked = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.0.1",
    ]
    parsed = [parse(text) for text in ranked]
    assert None not in parsed
    assert sorted(parsed, key=lambda v: v or SemVer(0, 0, 0)) == parsed
    assert parse("1.0.0+a") == parse("1.0.0+b")


def test_parents_must_exist() -> None:
    state = lifecycle(("owner", REGISTER), ("owner", add("1.0.0")))
    foreign = ModelVersion("model-text-lab-base-v1.0.0")
    state.when(add("1.1.0", lineage=Lineage(parents=(ModelVersion("0.9.0"),))), "owner").then_rejected("parent_unknown")
    state.when(add("1.1.0", lineage=Lineage(parents=(foreign,))), "owner").then_rejected("parent_unknown")
    known = add("1.1.0", lineage=Lineage(parents=(ModelVersion("1.0.0"), foreign)), parents_known=frozenset({foreign}))
    state.when(known, "owner").then_accepted()


def test_an_incompatible_change_needs_a_major_version_and_names_the_difference() -> None:
    state = lifecycle(("owner", REGISTER), ("owner", add("1.0.0")))
    other = technical(inputs=(tensor(shape=(-1, 65)),))
    rejected = state.when(add("1.1.0", technical=other), "owner").then_rejected("incompatible")
    assert "[-1, 64]" in rejected.message
    assert "[-1, 65]" in rejected.message
    state.when(add("2.0.0", technical=other), "owner").then_accepted()


def test_a_version_in_between_must_fit_the_one_above() -> None:
    widened = technical(outputs=(tensor("y"), tensor("z")))
    state = lifecycle(("owner", REGISTER), ("owner", add("1.0.0")), ("owner", add("1.2.0", technical=widened)))
    third = technical(outputs=(tensor("y"), tensor("z"), tensor("w")))
    state.when(add("1.1.0", technical=third), "owner").then_rejected("incompatible")
    state.when(add("1.1.0", technical=widened), "owner").then_accepted()


def test_major_zero_promises_nothing() -> None:
    state = lifecycle(("owner", REGISTER), ("owner", add("0.1.0")))
    state.when(add("0.2.0", technical=technical(inputs=(tensor("other"),))), "owner").then_accepted()


dims = st.lists(st.integers(-1, 4), max_size=3).map(tuple)
specs = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["FP32", "INT64"]), dims), min_size=1, max_size=3, unique_by=lambda t: t[0]
).map(lambda ts: tuple(tensor(*t) for t in ts))


@for_all(specs, specs)
def test_a_model_is_compatible_with_itself_and_with_extra_outputs(inputs: Any, outputs: Any) -> None:
    same = technical(inputs, outputs)
    assert differences(same, same) == ()
    assert differences(same, technical(inputs, (*outputs, tensor("extra")))) == ()
    assert differences(same, technical((*inputs, tensor("extra")), outputs)) != ()


def test_both_reviews_make_the_approval() -> None:
    state = lifecycle(*SUBMITTED, ("bea", BUSINESS))
    reviewed, approved = state.when(SECURITY, "sam").facts
    assert isinstance(reviewed, ModelVersionReviewed)
    assert isinstance(approved, ModelVersionApproved)
    assert (approved.business_by, approved.security_by) == ("bea", "sam")
    assert (reviewed.version, approved.version) == (state.state.version + 1, state.state.version + 2)


def test_one_person_never_gives_both_reviews() -> None:
    lifecycle(*SUBMITTED, ("bea", BUSINESS)).when(SECURITY, "bea").then_rejected("same_reviewer")
    lifecycle(*SUBMITTED, ("bea", SECURITY)).when(BUSINESS, "bea").then_rejected("same_reviewer")


def test_nobody_reviews_their_own_work() -> None:
    state = lifecycle(("owner", REGISTER), ("maker", add("1.0.0")), ("owner", SubmitVersion("1.0.0")))
    state.when(BUSINESS, "owner").then_rejected("own_work")
    state.when(SECURITY, "maker").then_rejected("own_work")


def test_a_review_is_given_once_and_only_while_it_is_open() -> None:
    lifecycle(*SUBMITTED, ("bea", BUSINESS)).when(BUSINESS, "bob").then_rejected("already_reviewed")
    lifecycle(("owner", REGISTER), ("owner", add("1.0.0"))).when(BUSINESS, "bea").then_rejected("not_in_review")
    lifecycle(*APPROVED).when(BUSINESS, "bea").then_rejected("not_in_review")


def test_a_rejection_ends_the_review_and_the_next_one_starts_from_nothing() -> None:
    rejected = (*SUBMITTED, ("bea", BUSINESS), ("sam", ReviewVersion("1.0.0", "security", "rejected", "pickle inside")))
    again = lifecycle(*rejected, ("owner", SubmitVersion("1.0.0")))
    (only,) = again.when(SECURITY, "sam").facts  # the business review of the first round does not count
    assert isinstance(only, ModelVersionReviewed)


def test_a_version_is_submitted_once() -> None:
    lifecycle(*SUBMITTED).when(SubmitVersion("1.0.0"), "owner").then_rejected("already_submitted")
    lifecycle(*APPROVED).when(SubmitVersion("1.0.0"), "owner").then_rejected("already_approved")
    lifecycle(*SUBMITTED).when(SubmitVersion("9.9.9"), "owner").then_rejected("version_unknown")


def test_a_retired_model_takes_no_command_and_names_its_successor() -> None:
    state = lifecycle(*APPROVED, ("owner", RetireModel("old", "model-vision-lab-digits2")))
    for command in (add("2.0.0"), SubmitVersion("1.0.0"), RetireModel("again")):
        rejected = state.when(command, "owner").then_rejected("model_retired", "gone")
        assert "model-vision-lab-digits2" in rejected.message
    lifecycle(("owner", REGISTER)).when(RetireModel("x", MODEL), "owner").then_rejected("successor_is_itself")
