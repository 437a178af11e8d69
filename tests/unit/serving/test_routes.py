"""Routes from facts: only versions that were reported ready take calls, in exactly the declared shares."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.bearer import digest_of
from access.codes import KEY_EXPIRED, KEY_REVOKED
from access.principal import Principal
from events.facts.accounts import KEY_DIMENSIONS
from events.log.record import Coordinate
from lifecycle.route import NOWHERE
from serving.gateway.routes import Routes, pick
from serving.gateway.routing import choose_version
from serving.refused import Refused
from tests.support.lifecycle_facts import MEMBERS, MODEL, body

M = MODEL
AT = Coordinate("deployments", 0, 0)


def routes_after(*facts: tuple[str, dict[str, Any]]) -> Routes:
    """Routes after these facts at the positions 1, 2, …"""
    routes = Routes()
    for position, (name, members) in enumerate(facts, 1):
        routes.apply(name, {"position": position, **body(name, **members)}, AT)
    return routes


REGISTERED = ("ModelRegistered", {})


def added(version: str) -> tuple[str, dict[str, Any]]:
    return "ModelVersionAdded", {"model_version": version}


def deployed(version: str) -> tuple[str, dict[str, Any]]:
    return "VersionDeployed", {"model_version": version}


def ready(version: str, position: int = 99) -> tuple[str, dict[str, Any]]:
    return "VersionReady", {"model_version": version, "position": position}


def failed(version: str, position: int = 99) -> tuple[str, dict[str, Any]]:
    return "VersionFailed", {"model_version": version, "position": position}


def rollout(weight: int) -> tuple[str, dict[str, Any]]:
    return "RolloutStarted", {"from_version": "1.0.0", "to_version": "1.1.0", "weight_percent": weight}


LIVE = (REGISTERED, added("1.0.0"), added("1.1.0"), deployed("1.0.0"), ready("1.0.0"))
CANARY = (*LIVE, rollout(20), ready("1.1.0"))
BACK = ("RolledBack", {"from_version": "1.1.0", "to_version": "1.0.0", "reason": "slow"})
PROMOTED = ("RolloutPromoted", {"from_version": "1.0.0", "to_version": "1.1.0"})
RETIRED = ("ModelRetired", {"reason": "old", "successor": "model-vision-core-new"})


def weights(routes: Routes) -> dict[str, int]:
    return dict(routes.models[M].route.weights)


def undeployed(version: str) -> tuple[str, dict[str, Any]]:
    return "VersionUndeployed", {"model_version": version, "reason": "unused"}


def test_a_version_takes_no_calls_before_it_was_seen_ready() -> None:
    assert routes_after(*LIVE[:-1]).models[M].route == NOWHERE
    assert weights(routes_after(*LIVE)) == {"1.0.0": 100}


def test_a_canary_takes_its_share_only_once_it_is_ready() -> None:
    assert weights(routes_after(*LIVE, rollout(20))) == {"1.0.0": 100}
    assert weights(routes_after(*CANARY)) == {"1.0.0": 80, "1.1.0": 20}


def test_a_failed_canary_takes_nothing_and_a_failed_live_version_stays_live() -> None:
    assert weights(routes_after(*CANARY, failed("1.1.0"))) == {"1.0.0": 100}
    assert weights(routes_after(*LIVE, failed("1.0.0"))) == {"1.0.0": 100}


def test_an_advanced_rollout_changes_the_share_and_a_full_one_leaves_nothing() -> None:
    advance = ("RolloutAdvanced", {"to_version": "1.1.0", "weight_percent": 50})
    assert weights(routes_after(*CANARY, advance)) == {"1.0.0": 50, "1.1.0": 50}
    full = ("RolloutAdvanced", {"to_version": "1.1.0", "weight_percent": 100})
    assert weights(routes_after(*CANARY, full)) == {"1.1.0": 100}


def test_a_rollback_during_a_canary_moves_all_calls_at_once() -> None:
    assert weights(routes_after(*CANARY, BACK)) == {"1.0.0": 100}


def test_a_rollback_to_an_unloaded_version_leaves_calls_where_they_are_until_it_is_loaded() -> None:
    facts = (*CANARY, PROMOTED, undeployed("1.0.0"), BACK)
    assert weights(routes_after(*facts)) == {"1.1.0": 100}
    assert weights(routes_after(*facts, ready("1.0.0"))) == {"1.0.0": 100}


def test_a_report_of_an_earlier_deployment_changes_nothing_of_the_next() -> None:
    facts = (*CANARY, PROMOTED, undeployed("1.0.0"), BACK)  # BACK is position 10
    assert weights(routes_after(*facts, ready("1.0.0", position=8))) == {"1.1.0": 100}


def test_a_model_whose_live_version_is_unloaded_falls_back_to_the_one_before() -> None:
    assert weights(routes_after(*CANARY, PROMOTED, undeployed("1.1.0"))) == {"1.0.0": 100}


def test_a_retired_model_takes_no_calls_names_its_successor_and_its_versions_may_go() -> None:
    routes = routes_after(*CANARY, RETIRED)
    model = routes.models[M]
    assert model.route == NOWHERE
    assert model.retired is not None and model.retired.successor == "model-vision-core-new"
    assert not any(v.deployed for v in model.versions.values())
    assert {v.withdrawn_at for v in model.versions.values()} == {len(CANARY) + 1}


def test_a_version_knows_which_fact_withdrew_it() -> None:
    routes = routes_after(*CANARY, undeployed("1.1.0"), RETIRED)
    assert {n: v.withdrawn_at for n, v in routes.models[M].versions.items()} == {"1.1.0": len(CANARY) + 1, "1.0.0": len(CANARY) + 2}


def test_observed_facts_of_an_unknown_model_change_nothing_and_decided_ones_stop_the_fold() -> None:
    routes = routes_after(("VersionReady", {"model": "ghost", "model_version": "1.0.0", "replicas": 1, "position": 5}))
    assert routes.models == {}
    with pytest.raises(KeyError, match="ModelRegistered"):
        routes.apply("RolledBack", {"position": 6, **body("RolledBack", model="ghost")}, AT)


def test_names_are_full_ids_or_addresses_that_pin_a_version() -> None:
    routes = routes_after(*CANARY)

    def found(name: str) -> tuple[str, str | None] | None:
        answer = routes.find(name)
        return None if answer is None else (answer[0].model, answer[1])

    assert found(M) == (M, None)
    assert found(f"{M}-v1.1.0") == (M, "1.1.0")
    assert found(f"{M}-v1.1.0-verify.1") == (M, "1.1.0-verify.1")
    assert found("model-vision-core-other") is None


def issued(**more: Any) -> dict[str, Any]:
    words = dict.fromkeys(KEY_DIMENSIONS, "")
    who = {"tenant": "acme", "key_id": "k1", "key_sha256": digest_of(b"mm_secret").hex(), "user": "u", "scopes": ["invoke", "read"]}
    return who | words | {"labels": {"a": "b"}, "expires_at": None} | more


def test_a_key_works_from_its_issue_until_it_expires_or_is_revoked() -> None:
    keys = routes_after(("ApiKeyIssued", issued(scopes=["invoke"], expires_at=1000))).keys
    found = keys.authenticate(b"Bearer mm_secret", 999)
    assert isinstance(found, Principal) and (found.tenant, found.scopes, found.labels) == ("acme", {"invoke"}, {"a": "b"})
    assert keys.authenticate(b"Bearer mm_secret", 1000) is KEY_EXPIRED
    keys.apply("ApiKeyRevoked", {"tenant": "acme", "key_id": "k1"})
    assert keys.authenticate(b"Bearer mm_secret", 999) is KEY_REVOKED


def test_a_snapshot_holds_all_that_the_facts_made() -> None:
    routes, copy = routes_after(*CANARY, ("ApiKeyIssued", issued())), Routes()
    copy.load(b"".join(routes.dump()))
    found = copy.keys.authenticate(b"Bearer mm_secret", 0)
    assert isinstance(found, Principal) and found == routes.keys.authenticate(b"Bearer mm_secret", 0)
    was, now = routes.models[M], copy.models[M]
    assert (now.lifecycle, now.status, now.versions, now.route) == (was.lifecycle, was.status, was.versions, was.route)
    copy.apply("ApiKeyRevoked", {"tenant": "acme", "key_id": "k1"}, AT)
    assert len(copy.keys) == 0 and copy.keys.authenticate(b"Bearer mm_secret", 0) is KEY_REVOKED


def test_versions_with_equal_descriptions_share_one_after_a_snapshot() -> None:
    other = {**MEMBERS["technical"], "framework": "another"}
    copy = Routes()
    copy.load(b"".join(routes_after(*LIVE, ("ModelVersionAdded", {"model_version": "1.2.0", "technical": other})).dump()))
    first, second, third = (copy.models[M].lifecycle.versions[v].release.technical for v in ("1.0.0", "1.1.0", "1.2.0"))
    assert first is second and first != third and third.framework == "another"


@given(st.integers(1, 99), st.integers(0, 10**9))
def test_a_split_is_exact_over_every_hundred_calls_from_any_start(share: int, start: int) -> None:
    split = (("old", 100 - share), ("new", share))
    counts = Counter(pick(split, turn) for turn in range(start, start + 100))
    assert counts == {"old": 100 - share, "new": share}


@given(st.integers(5, 95), st.integers(0, 10**6))
def test_a_split_is_spread_so_that_twenty_calls_are_already_close(share: int, start: int) -> None:
    split = (("old", 100 - share), ("new", share))
    got = sum(pick(split, turn) == "new" for turn in range(start, start + 20))
    assert abs(got - share / 5) <= 3


def chosen(routes: Routes) -> tuple[str, str]:
    version, route = choose_version(routes.models[M], None, canary_trusted=False)
    return version.version, route


def test_a_call_between_two_halves_of_a_change_is_answered_or_refused_with_a_reason() -> None:
    """The fold changes versions, then the route, while calls come in."""
    routes = routes_after(REGISTERED, added("1.0.0"), deployed("1.0.0"), ready("1.0.0"))
    model, was = routes.models[M], routes.models[M].route
    assert chosen(routes) == ("1.0.0", "steady:100")
    model.route = NOWHERE  # seen ready, and not yet routed
    assert chosen(routes)[0] == "1.0.0"
    model.versions = {"1.0.0": replace(model.versions["1.0.0"], ready=False)}  # withdrawn, and still routed nowhere
    with pytest.raises(Refused, match="version_not_ready"):
        chosen(routes)
    routes.apply("ModelRetired", {"position": 100, **body("ModelRetired", reason="old")}, AT)
    model.route = was  # retired, and still routed
    with pytest.raises(Refused, match="model_retired"):
        chosen(routes)
