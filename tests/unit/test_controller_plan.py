"""What the controller may send to Ray: never a poorer set than the facts ask for, never an older one (K18)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from serving.desired import GATEWAY_APP, Applied, Apply, Generation, Hold, Keep, Shape, gateway_app, model_app, plan
from serving.routes import Interface, Model, Routes, Tensor, Version

SHAPE = Shape("127.0.0.1", 24000, 1, 1)
NOW = Generation("log-1", "store-1", 50)
FACE = Interface((Tensor("x", "FP32", (-1, 2)),), (Tensor("y", "FP32", (-1, 2)),))


def routes(*models: str, withdrawn: tuple[str, ...] = ()) -> Routes:
    found = Routes()
    for name in (*models, *withdrawn):
        version = Version(name, "1.0.0", "acme", FACE, "sha256:" + "0" * 64, "onnx")
        version.deployed, version.withdrawn = name not in withdrawn, name in withdrawn
        found.models[name] = Model(name, "acme", {"1.0.0": version})
    return found


def applied(*models: str, generation: Generation = NOW) -> Applied:
    configs = {v.address: model_app(v) for v in routes(*models).versions()}
    return Applied(generation, configs | {GATEWAY_APP: gateway_app(SHAPE, generation)})


EMPTY = Applied(None)


def names(decided: object) -> set[str]:
    assert isinstance(decided, Apply)
    return {app["name"] for app in decided.config["applications"]}


def held(decided: object) -> str:
    assert isinstance(decided, Hold) and decided.remedy
    return decided.code


def test_an_empty_ray_gets_the_whole_set_gateway_included() -> None:
    decided = plan(routes("m1", "m2"), NOW, EMPTY, SHAPE)
    assert names(decided) == {"gateway", "m1-v1.0.0", "m2-v1.0.0"}


def test_models_are_never_public_and_the_gateway_is() -> None:
    decided = plan(routes("m1"), NOW, EMPTY, SHAPE)
    assert isinstance(decided, Apply)
    prefixes = {app["name"]: app["route_prefix"] for app in decided.config["applications"]}
    assert prefixes == {"gateway": "/", "m1-v1.0.0": None}
    assert decided.config["http_options"] == {"host": "127.0.0.1", "port": 24000}


def test_the_set_carries_its_own_generation() -> None:
    decided = plan(routes("m1"), NOW, EMPTY, SHAPE)
    assert isinstance(decided, Apply)
    assert decided.config["applications"][0]["deployments"] == [{"name": "gateway", "user_config": asdict(NOW)}]


def test_what_ray_was_told_is_not_told_again() -> None:
    assert plan(routes("m1"), replace(NOW, position=90), applied("m1"), SHAPE) == Keep()


def test_a_changed_spec_is_sent() -> None:
    changed = routes("m1")
    changed.models["m1"].versions["1.0.0"].spec = {"replicas_min": 2, "replicas_max": 2}
    assert names(plan(changed, NOW, applied("m1"), SHAPE)) == {"gateway", "m1-v1.0.0"}


def test_an_older_fold_sends_nothing_however_empty_it_is() -> None:
    assert held(plan(routes(), replace(NOW, position=3), applied("m1", "m2"), SHAPE)) == "behind"
    assert held(plan(Routes(), Generation("log-1", "", 0), applied("m1"), SHAPE)) == "behind"


def test_another_log_sends_nothing() -> None:
    assert held(plan(routes("m9"), replace(NOW, log_id="log-2", position=99), applied("m1"), SHAPE)) == "wrong_log"


def test_an_application_no_fact_took_away_stays_and_is_named() -> None:
    decided = plan(routes("m2"), NOW, applied("m1"), SHAPE)
    assert names(decided) == {"gateway", "m1-v1.0.0", "m2-v1.0.0"}
    assert isinstance(decided, Apply) and decided.unexplained == ("m1-v1.0.0",)
    assert plan(routes(), NOW, applied("m1"), SHAPE) == Keep(("m1-v1.0.0",))


def test_a_withdrawn_version_leaves_after_the_gateways_had_time_to_know() -> None:
    facts = routes("m2", withdrawn=("m1",))
    assert plan(facts, NOW, applied("m1", "m2"), SHAPE, leaving=frozenset({"m1-v1.0.0"})) == Keep()
    decided = plan(facts, NOW, applied("m1", "m2"), SHAPE)
    assert names(decided) == {"gateway", "m2-v1.0.0"}
    assert isinstance(decided, Apply) and decided.removed == ("m1-v1.0.0",)


def test_one_model_may_always_go_and_a_fifth_of_many() -> None:
    many = [f"m{i}" for i in range(10)]
    assert isinstance(plan(routes(withdrawn=("m0",)), NOW, applied("m0"), SHAPE), Apply)
    assert isinstance(plan(routes(*many[2:], withdrawn=("m0", "m1")), NOW, applied(*many), SHAPE), Apply)


def test_more_than_a_fifth_at_once_waits_for_a_person() -> None:
    many = [f"m{i}" for i in range(10)]
    facts = routes(*many[3:], withdrawn=("m0", "m1", "m2"))
    assert held(plan(facts, NOW, applied(*many), SHAPE)) == "mass_removal"
    assert held(plan(facts, NOW, applied(*many), SHAPE, approved_position=49)) == "mass_removal"
    assert isinstance(plan(facts, NOW, applied(*many), SHAPE, approved_position=50), Apply)


def test_arguments_are_plain_json() -> None:
    import json

    decided: Any = plan(routes("m1"), NOW, EMPTY, SHAPE)
    assert json.loads(json.dumps(decided.config)) == decided.config
