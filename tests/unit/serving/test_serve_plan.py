"""What the controller may send to Ray: never a set that lacks an application of the facts, never an older set (K18)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from events.facts.deployments import ServiceSpec
from events.log.record import Coordinate
from serving.control.retries import Retries, attempts_exhausted
from serving.control.serve_plan import (
    AppliedConfig,
    ApplyConfig,
    Blocked,
    ConfigVersion,
    KeepConfig,
    applied_app,
    attempt_of,
    model_app,
    plan,
)
from serving.gateway.routes import Routes
from serving.gateway.served_models import Version
from serving.serve_names import APPLIED_APP, APPLIED_DEPLOYMENT
from tests.support.lifecycle_facts import body

NOW = ConfigVersion("log-1", "store-1", 50)


def routes(*models: str, withdrawn: tuple[str, ...] = ()) -> list[Version]:
    """A version of each model, as the facts make it; what is withdrawn was so at positions 40, 41, …"""
    found = Routes()
    for name in (*models, *withdrawn):
        facts = {"ModelRegistered": 1, "ModelVersionAdded": 2, "VersionDeployed": 3}
        if name in withdrawn:
            facts["VersionUndeployed"] = 40 + withdrawn.index(name)
        for fact, position in facts.items():
            found.apply(fact, {**body(fact, model=name), "position": position}, Coordinate("deployments", 0, 0))
    return found.versions()


def respecified(versions: list[Version], model: str) -> list[Version]:
    """The same versions, of which one runs otherwise."""
    return [replace(v, spec=ServiceSpec(replicas_min=2, replicas_max=2)) if v.model == model else v for v in versions]


def applied(*models: str, version: ConfigVersion = NOW) -> AppliedConfig:
    configs = {v.address: model_app(v) for v in routes(*models)}
    return AppliedConfig(version, configs | {APPLIED_APP: applied_app(version)})


EMPTY = AppliedConfig(None)


def names(decided: object) -> set[str]:
    assert isinstance(decided, ApplyConfig)
    return {app["name"] for app in decided.config["applications"]}


def held(decided: object) -> str:
    assert isinstance(decided, Blocked) and decided.remedy
    return decided.code


def test_an_empty_ray_gets_the_whole_set_and_the_version_of_it() -> None:
    decided = plan(routes("m1", "m2"), NOW, EMPTY)
    assert names(decided) == {APPLIED_APP, "m1-v1.0.0", "m2-v1.0.0"}


def test_nothing_in_serve_is_public() -> None:
    decided = plan(routes("m1"), NOW, EMPTY)
    assert isinstance(decided, ApplyConfig)
    prefixes = {app["name"]: app["route_prefix"] for app in decided.config["applications"]}
    assert prefixes == {APPLIED_APP: None, "m1-v1.0.0": None}
    assert decided.config["proxy_location"] == "Disabled"


def test_the_set_carries_its_own_version() -> None:
    decided = plan(routes("m1"), NOW, EMPTY)
    assert isinstance(decided, ApplyConfig)
    assert decided.config["applications"][0]["deployments"] == [{"name": APPLIED_DEPLOYMENT, "user_config": asdict(NOW)}]


def test_a_set_that_ray_already_has_is_not_sent_again() -> None:
    assert plan(routes("m1"), replace(NOW, position=90), applied("m1")) == KeepConfig()


def test_a_changed_spec_is_sent() -> None:
    changed = respecified(routes("m1"), "m1")
    assert names(plan(changed, NOW, applied("m1"))) == {APPLIED_APP, "m1-v1.0.0"}


def test_a_fold_behind_the_applied_set_sends_nothing() -> None:
    assert held(plan(routes(), replace(NOW, position=3), applied("m1", "m2"))) == "behind"
    assert held(plan([], ConfigVersion("log-1", "", 0), applied("m1"))) == "behind"


def test_another_log_sends_nothing() -> None:
    assert held(plan(routes("m9"), replace(NOW, log_id="log-2", position=99), applied("m1"))) == "wrong_log"


def test_an_application_that_no_fact_withdrew_stays_and_is_named() -> None:
    decided = plan(routes("m2"), NOW, applied("m1"))
    assert names(decided) == {APPLIED_APP, "m1-v1.0.0", "m2-v1.0.0"}
    assert isinstance(decided, ApplyConfig) and decided.unknown_apps == ("m1-v1.0.0",)
    assert plan(routes(), NOW, applied("m1")) == KeepConfig(("m1-v1.0.0",))


def test_a_withdrawn_version_is_removed_after_the_gateways_had_time_to_know() -> None:
    facts = routes("m2", withdrawn=("m1",))
    assert plan(facts, NOW, applied("m1", "m2"), draining=frozenset({"m1-v1.0.0"})) == KeepConfig()
    decided = plan(facts, NOW, applied("m1", "m2"))
    assert names(decided) == {APPLIED_APP, "m2-v1.0.0"}
    assert isinstance(decided, ApplyConfig) and decided.removed == ("m1-v1.0.0",)


def test_one_model_or_a_fifth_of_many_is_removed_without_confirmation() -> None:
    many = [f"m{i}" for i in range(10)]
    assert isinstance(plan(routes(withdrawn=("m0",)), NOW, applied("m0")), ApplyConfig)
    assert isinstance(plan(routes(*many[2:], withdrawn=("m0", "m1")), NOW, applied(*many)), ApplyConfig)


MANY = tuple(f"m{i}" for i in range(10))


def waits(decided: object, position: int) -> None:
    assert isinstance(decided, ApplyConfig | KeepConfig) and decided.blocked is not None
    assert decided.blocked.code == "mass_removal"
    assert f"MODELMARKET_REMOVALS_APPROVED_POSITION={position} " in decided.blocked.remedy


def test_more_than_a_fifth_at_once_waits_for_a_person_and_stays_loaded() -> None:
    facts = routes(*MANY[3:], withdrawn=MANY[:3])
    decided = plan(facts, NOW, applied(*MANY))
    assert isinstance(decided, KeepConfig)
    waits(decided, 42)
    assert isinstance(plan(facts, NOW, applied(*MANY), approved_position=42), ApplyConfig)


def test_while_a_mass_removal_waits_everybody_elses_deployments_are_applied() -> None:
    facts = respecified(routes(*MANY[3:], "new", withdrawn=MANY[:3]), "m5")
    decided = plan(facts, NOW, applied(*MANY))
    waits(decided, 42)
    assert names(decided) == {APPLIED_APP, *(f"{m}-v1.0.0" for m in (*MANY, "new"))}
    assert isinstance(decided, ApplyConfig) and decided.removed == ()
    (changed,) = [a for a in decided.config["applications"] if a["name"] == "m5-v1.0.0"]
    assert changed["args"]["spec"]["replicas_min"] == 2


def test_a_confirmation_covers_what_was_withdrawn_by_then_and_nothing_later() -> None:
    facts = routes(*MANY[5:], withdrawn=MANY[:5])  # at 40 … 44
    decided = plan(facts, NOW, applied(*MANY), approved_position=41)
    assert isinstance(decided, ApplyConfig) and decided.removed == ("m0-v1.0.0", "m1-v1.0.0")
    waits(decided, 44)
    late = replace(NOW, position=10_000)
    assert isinstance(plan(facts, late, applied(*MANY), approved_position=44), ApplyConfig)
    waits(plan(facts, late, applied(*MANY), approved_position=39), 44)


def test_draining_versions_count_so_that_a_mass_removal_cannot_happen_one_by_one() -> None:
    facts = routes(*MANY[3:], withdrawn=MANY[:3])
    decided = plan(facts, NOW, applied(*MANY), draining=frozenset({"m1-v1.0.0", "m2-v1.0.0"}))
    assert isinstance(decided, KeepConfig)
    waits(decided, 42)


def test_an_empty_fold_that_is_not_behind_removes_nothing() -> None:
    assert plan(routes(), NOW, applied(*MANY)) == KeepConfig(tuple(f"{m}-v1.0.0" for m in MANY))


# --- what Ray gave up on


def attempts(decided: object) -> dict[str, int]:
    assert isinstance(decided, ApplyConfig)
    return {app["name"]: attempt_of(app) for app in decided.config["applications"]}


def test_an_application_is_tried_again_under_a_new_number_and_the_others_are_left_alone() -> None:
    decided = plan(routes("m1", "m2"), NOW, applied("m1", "m2"), retried=frozenset({"m1-v1.0.0"}))
    assert attempts(decided) == {APPLIED_APP: 1, "m1-v1.0.0": 2, "m2-v1.0.0": 1}
    assert isinstance(decided, ApplyConfig)
    there = AppliedConfig(NOW, {app["name"]: app for app in decided.config["applications"]})
    assert plan(routes("m1", "m2"), NOW, there) == KeepConfig()  # its number stays, also for the next controller
    assert attempts(plan(routes("m1", "m2"), NOW, there, retried=frozenset({"m1-v1.0.0"})))["m1-v1.0.0"] == 3
    changed = respecified(routes("m1", "m2"), "m1")
    assert attempts(plan(changed, NOW, there))["m1-v1.0.0"] == 1  # something else is to be started


def test_the_version_is_tried_again_too() -> None:
    assert attempts(plan(routes("m1"), NOW, applied("m1"), retried=frozenset({APPLIED_APP})))[APPLIED_APP] == 2


def test_pauses_grow_and_attempts_end_but_not_those_of_the_version() -> None:
    retries, tried = Retries(), dict[str, list[float]]()
    attempt = {"m1": 1, APPLIED_APP: 1}
    for second in range(600):
        for name in retries.due(attempt, second, endless=APPLIED_APP):
            tried.setdefault(name, []).append(second)
            attempt[name] += 1
    assert tried["m1"] == [10, 41, 162]  # a second passes until the failure of the next attempt is seen
    assert tried[APPLIED_APP] == [10, 41, 162, 283, 404, 525]
    assert attempts_exhausted(attempt) == {"m1", APPLIED_APP} and attempts_exhausted({"m1": 3}) == set()


def test_an_application_that_recovered_starts_its_pauses_anew() -> None:
    retries = Retries()
    assert not retries.due({"m1": 1}, 0)
    assert not retries.due({}, 5)
    assert not retries.due({"m1": 1}, 11)
    assert retries.due({"m1": 1}, 21) == {"m1"}


def test_arguments_are_plain_json() -> None:
    import json

    decided: Any = plan(routes("m1"), NOW, EMPTY)
    assert json.loads(json.dumps(decided.config)) == decided.config
