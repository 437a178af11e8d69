"""The life of a model, as sentences: given these facts, when this command comes, then these facts or this refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from commands.models import decide as model_decide
from commands.models.compatibility import differences
from commands.models.decide import AddVersion, RegisterModel, RetireModel, ReviewVersion, SubmitVersion
from commands.models.semver import SemVer, parse
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected
from events.facts.fact import ModelId, TenantId, UserId
from events.facts.models import Compliance, Lineage, ModelRegistered, ModelVersionApproved, ModelVersionReviewed, Technical, TensorSpec
from lifecycle.state import Lifecycle, evolve

MODEL = ModelId("model-vision-lab-digits")
DIGEST = "sha256:" + "a" * 64


def tensor(name: str = "x", datatype: Any = "FP32", shape: tuple[int, ...] = (-1, 64)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def technical(inputs: tuple[TensorSpec, ...] = (tensor(),), outputs: tuple[TensorSpec, ...] = (tensor("y"),)) -> Technical:
    return Technical(format="onnx", framework="sklearn", precision="FP32", inputs=inputs, outputs=outputs)


def by(user: str, command: int = 0) -> CommandContext:
    return CommandContext(f"00000000-0000-4000-8000-{command:012d}", 1_000_000, UserId(user), "cause", "correlation")


REGISTER = RegisterModel(
    MODEL,
    TenantId("acme"),
    "vision",
    "lab",
    "digits",
    "post",
    "classification",
    UserId("owner"),
    "",
    (),
    Compliance(licence="MIT", data_sources=("uci",), data_level="public"),
)


def add(version: str, **changes: Any) -> AddVersion:
    return replace(AddVersion(version, technical(), DIGEST, 10, "", Lineage()), **changes)


def given(*steps: tuple[str, Any]) -> Lifecycle:
    """The state after these (user, command), each of which must succeed."""
    state: Lifecycle = Lifecycle()
    for user, command in steps:
        facts = model_decide.decide(state, command, by(user))
        assert not isinstance(facts, Rejected), facts
        for fact in facts:
            state = evolve(state, fact)
    return state


def when(state: Lifecycle, user: str, command: Any) -> Sequence[Any] | Rejected:
    return model_decide.decide(state, command, by(user))


def refused(decision: object) -> str:
    assert isinstance(decision, Rejected), decision
    assert all(v.remedy for v in decision.violations)
    return decision.code


SUBMITTED = (("owner", REGISTER), ("owner", add("1.0.0")), ("owner", SubmitVersion("1.0.0")))
BUSINESS = ReviewVersion("1.0.0", "business", "approved")
SECURITY = ReviewVersion("1.0.0", "security", "approved")
APPROVED = (*SUBMITTED, ("bea", BUSINESS), ("sam", SECURITY))


def test_a_registration_takes_the_name_and_says_who_and_why() -> None:
    (fact,) = when(Lifecycle(), "owner", REGISTER)
    assert isinstance(fact, ModelRegistered)
    assert (fact.model, fact.tenant, fact.version, fact.producer) == (MODEL, "acme", 1, "commands")
    assert (fact.causation_id, fact.correlation_id, fact.occurred_at) == ("cause", "correlation", 1_000_000)


def test_deciding_twice_gives_the_same_event_ids() -> None:
    assert when(Lifecycle(), "owner", REGISTER) == when(Lifecycle(), "owner", REGISTER)


def test_a_name_is_given_once() -> None:
    assert refused(when(given(("owner", REGISTER)), "owner", REGISTER)) == "name_taken"


def test_a_retired_name_is_never_given_away_again() -> None:
    assert refused(when(given(("owner", REGISTER), ("owner", RetireModel("old"))), "owner", REGISTER)) == "name_taken"


def test_nothing_happens_to_a_model_that_does_not_exist() -> None:
    for command in (add("1.0.0"), SubmitVersion("1.0.0"), BUSINESS, RetireModel("old")):
        assert refused(when(Lifecycle(), "owner", command)) == "model_unknown"


def test_a_version_is_never_changed() -> None:
    state = given(("owner", REGISTER), ("owner", add("1.0.0")))
    assert refused(when(state, "owner", add("1.0.0"))) == "version_exists"
    assert refused(when(state, "owner", add("1.0.0", artifact="sha256:" + "b" * 64))) == "version_exists"
    assert refused(when(state, "owner", add("1.0.0+build.2"))) == "version_exists"


@pytest.mark.parametrize("text", ["1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0 ", "1.0.0\n", "", "1.0.0-" + "a" * 70, "١.0.0"])
def test_what_is_no_semver_is_no_version(text: str) -> None:
    assert refused(when(given(("owner", REGISTER)), "owner", add(text))) == "version_not_semver"


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
    state = given(("owner", REGISTER), ("owner", add("1.0.0")))
    stranger = "model-text-lab-base-v1.0.0"
    assert refused(when(state, "owner", add("1.1.0", lineage=Lineage(parents=("0.9.0",))))) == "parent_unknown"
    assert refused(when(state, "owner", add("1.1.0", lineage=Lineage(parents=(stranger,))))) == "parent_unknown"
    known = add("1.1.0", lineage=Lineage(parents=("1.0.0", stranger)), parents_known=frozenset({stranger}))
    assert not isinstance(when(state, "owner", known), Rejected)


def test_an_incompatible_change_needs_a_major_version_and_names_the_difference() -> None:
    state = given(("owner", REGISTER), ("owner", add("1.0.0")))
    other = technical(inputs=(tensor(shape=(-1, 65)),))
    decision = when(state, "owner", add("1.1.0", technical=other))
    assert refused(decision) == "incompatible"
    assert isinstance(decision, Rejected)
    assert "[-1, 64]" in decision.message
    assert "[-1, 65]" in decision.message
    assert not isinstance(when(state, "owner", add("2.0.0", technical=other)), Rejected)


def test_a_version_in_between_must_fit_the_one_above() -> None:
    widened = technical(outputs=(tensor("y"), tensor("z")))
    state = given(("owner", REGISTER), ("owner", add("1.0.0")), ("owner", add("1.2.0", technical=widened)))
    third = technical(outputs=(tensor("y"), tensor("z"), tensor("w")))
    assert refused(when(state, "owner", add("1.1.0", technical=third))) == "incompatible"
    assert not isinstance(when(state, "owner", add("1.1.0", technical=widened)), Rejected)


def test_major_zero_promises_nothing() -> None:
    state = given(("owner", REGISTER), ("owner", add("0.1.0")))
    assert not isinstance(when(state, "owner", add("0.2.0", technical=technical(inputs=(tensor("other"),)))), Rejected)


dims = st.lists(st.integers(-1, 4), max_size=3).map(tuple)
specs = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["FP32", "INT64"]), dims), max_size=3, unique_by=lambda t: t[0]).map(
    lambda ts: tuple(tensor(*t) for t in ts)
)


@for_all(specs, specs)
def test_a_model_is_always_compatible_with_itself_and_extra_outputs_harm_nobody(inputs: Any, outputs: Any) -> None:
    same = technical(inputs, outputs)
    assert differences(same, same) == ()
    assert differences(same, technical(inputs, (*outputs, tensor("extra")))) == ()
    assert differences(same, technical((*inputs, tensor("extra")), outputs)) != ()


def test_both_reviews_make_the_approval() -> None:
    state = given(*SUBMITTED, ("bea", BUSINESS))
    reviewed, approved = when(state, "sam", SECURITY)
    assert isinstance(reviewed, ModelVersionReviewed)
    assert isinstance(approved, ModelVersionApproved)
    assert (approved.business_by, approved.security_by) == ("bea", "sam")
    assert (reviewed.version, approved.version) == (state.version + 1, state.version + 2)


def test_one_person_never_gives_both_reviews() -> None:
    assert refused(when(given(*SUBMITTED, ("bea", BUSINESS)), "bea", SECURITY)) == "same_reviewer"
    assert refused(when(given(*SUBMITTED, ("bea", SECURITY)), "bea", BUSINESS)) == "same_reviewer"


def test_nobody_reviews_their_own_work() -> None:
    state = given(("owner", REGISTER), ("maker", add("1.0.0")), ("owner", SubmitVersion("1.0.0")))
    assert refused(when(state, "owner", BUSINESS)) == "own_work"
    assert refused(when(state, "maker", SECURITY)) == "own_work"


def test_a_review_is_given_once_and_only_while_it_is_open() -> None:
    assert refused(when(given(*SUBMITTED, ("bea", BUSINESS)), "bob", BUSINESS)) == "already_reviewed"
    assert refused(when(given(("owner", REGISTER), ("owner", add("1.0.0"))), "bea", BUSINESS)) == "not_in_review"
    assert refused(when(given(*APPROVED), "bea", BUSINESS)) == "not_in_review"


def test_a_rejection_ends_the_review_and_the_next_one_starts_from_nothing() -> None:
    rejected = (*SUBMITTED, ("bea", BUSINESS), ("sam", ReviewVersion("1.0.0", "security", "rejected", "pickle inside")))
    again = given(*rejected, ("owner", SubmitVersion("1.0.0")))
    (only,) = when(again, "sam", SECURITY)  # the business review of the first round does not count
    assert isinstance(only, ModelVersionReviewed)


def test_a_version_is_submitted_once() -> None:
    assert refused(when(given(*SUBMITTED), "owner", SubmitVersion("1.0.0"))) == "already_submitted"
    assert refused(when(given(*APPROVED), "owner", SubmitVersion("1.0.0"))) == "already_approved"
    assert refused(when(given(*SUBMITTED), "owner", SubmitVersion("9.9.9"))) == "version_unknown"


def test_a_retired_model_takes_no_command_and_names_its_successor() -> None:
    state = given(*APPROVED, ("owner", RetireModel("old", "model-vision-lab-digits2")))
    for command in (add("2.0.0"), SubmitVersion("1.0.0"), RetireModel("again")):
        decision = when(state, "owner", command)
        assert refused(decision) == "model_retired"
        assert isinstance(decision, Rejected)
        assert decision.ground == "gone"
        assert "model-vision-lab-digits2" in decision.message
    assert refused(when(given(("owner", REGISTER)), "owner", RetireModel("x", MODEL))) == "successor_is_itself"
