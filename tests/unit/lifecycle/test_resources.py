"""What a tenant's loaded versions take: against a recount of everything after every step of random histories."""

from __future__ import annotations

import random
from typing import Any

import pytest

from events.facts.accounts import TenantQuotaSet
from events.facts.deployments import ServiceSpec
from events.schema.trusted import trusted
from lifecycle.deployment import NotDeployed, Serving, Shifting
from lifecycle.facts import fact_of
from lifecycle.misfit import Misfit
from lifecycle.resources import MEMORY_BYTES_DEFAULT, QUOTA_DEFAULT, Resources, TenantResources, of_spec, taken
from tests.support.lifecycle_facts import body

TENANTS = ("acme", "globex")
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")


def apply(resources: TenantResources, name: str, **members: Any) -> Misfit | None:
    members = body(name, **members)
    if name == "TenantQuotaSet":
        return resources.apply(trusted(TenantQuotaSet, members))
    fact: Any = fact_of(name, members)
    return resources.apply(fact)


def test_a_version_counts_for_the_most_replicas_that_it_may_have() -> None:
    assert of_spec(ServiceSpec(replicas_min=1, replicas_max=3, cpu_millis=250, gpu_millis=500, memory_bytes=10)) == Resources(
        3, 750, 1500, 30
    )
    assert of_spec(ServiceSpec(replicas_max=2)) == Resources(2, 200, 0, 2 * MEMORY_BYTES_DEFAULT)
    assert of_spec(ServiceSpec(replicas_min=5, replicas_max=2)).replicas == 5  # no request may say so, and replicas are run like this


def test_a_rollout_counts_both_versions_and_each_version_counts_once() -> None:
    one, two = ServiceSpec(replicas_max=1), ServiceSpec(replicas_max=2)
    assert taken(NotDeployed()) == Resources()
    assert taken(Serving("1.0.0", {}, one)) == of_spec(one)
    assert taken(Shifting("1.0.0", "1.1.0", 20, {"1.2.0": one}, one, two)) == of_spec(one) + of_spec(two) + of_spec(one)


def test_a_tenant_has_the_default_quota_until_another_one_is_decided() -> None:
    resources = TenantResources()
    assert resources.quota("acme") == QUOTA_DEFAULT
    assert apply(resources, "TenantQuotaSet", replicas=1, cpu_millis=2, gpu_millis=3, memory_bytes=4) is None
    assert resources.quota("acme") == Resources(1, 2, 3, 4)
    assert resources.quota("globex") == QUOTA_DEFAULT


def test_a_fact_that_does_not_follow_changes_nothing() -> None:
    resources = TenantResources()
    assert isinstance(apply(resources, "RolloutStarted"), Misfit)
    apply(resources, "VersionDeployed")
    before = resources.used("acme")
    assert isinstance(apply(resources, "VersionDeployed", spec=ServiceSpec(replicas_max=9).model_dump()), Misfit)
    assert isinstance(apply(resources, "VersionUndeployed", model_version="9.9.9"), Misfit)
    assert (resources.used("acme"), before.replicas) == (before, 1)


class Recount:
    """Written for the test alone: what is loaded of each model, from what the facts say; added up from nothing whenever it is asked."""

    def __init__(self) -> None:
        self.loaded: dict[str, dict[str, dict[str, int]]] = {}
        self.owner: dict[str, str] = {}

    def used(self, tenant: str) -> tuple[int, int, int, int]:
        specs = [spec for model, there in self.loaded.items() if self.owner[model] == tenant for spec in there.values()]
        replicas = [spec["replicas_max"] for spec in specs]
        pairs = list(zip(replicas, specs, strict=True))
        memory = sum(n * (spec["memory_bytes"] or 268_435_456) for n, spec in pairs)
        return sum(replicas), sum(n * spec["cpu_millis"] for n, spec in pairs), sum(n * spec["gpu_millis"] for n, spec in pairs), memory


@pytest.mark.parametrize("seed", range(40))
def test_after_any_history_the_sums_are_those_of_a_recount(seed: int) -> None:
    rng = random.Random(seed)
    resources, recount = TenantResources(), Recount()
    models = {f"m{n}": TENANTS[n % 2] for n in range(4)}
    live: dict[str, str] = {}
    candidate: dict[str, str] = {}
    for _ in range(120):
        model = rng.choice(list(models))
        tenant, version = models[model], rng.choice(VERSIONS)
        there = recount.loaded.setdefault(model, {})
        recount.owner[model] = tenant
        spec = ServiceSpec(
            replicas_max=rng.randint(1, 100),
            cpu_millis=rng.randint(1, 1_000_000),
            gpu_millis=rng.randint(0, 4000),
            memory_bytes=rng.choice((0, rng.randint(1, 1 << 40))),
        ).model_dump()
        if model not in live:
            assert apply(resources, "VersionDeployed", model=model, tenant=tenant, model_version=version, spec=spec) is None
            live[model], there[version] = version, spec
        elif model in candidate and rng.random() < 0.5:
            names = {"model": model, "from_version": live[model], "to_version": candidate[model]}
            if rng.random() < 0.5:
                assert apply(resources, "RolloutPromoted", **names) is None
                live[model] = candidate.pop(model)
            else:
                assert apply(resources, "RolledBack", model=model, from_version=candidate.pop(model), to_version=live[model]) is None
        elif rng.random() < 0.1:  # retired: everything is unloaded, the live version first
            for gone in sorted(there, key=lambda v: v != live[model]):
                assert apply(resources, "VersionUndeployed", model=model, model_version=gone) is None
            there.clear()
            live.pop(model)
            candidate.pop(model, None)
        elif model not in candidate and version != live[model]:
            if rng.random() < 0.3:  # back to any version; one that is not loaded runs like the one that it replaces
                assert apply(resources, "RolledBack", model=model, from_version=live[model], to_version=version) is None
                there.setdefault(version, there[live[model]])
                live[model] = version
            else:
                names = {"model": model, "tenant": tenant, "from_version": live[model], "to_version": version}
                assert apply(resources, "RolloutStarted", **names, spec=spec) is None
                candidate[model], there[version] = version, spec
        elif version in there and version not in (live[model], candidate.get(model)):
            assert apply(resources, "VersionUndeployed", model=model, model_version=version) is None
            del there[version]
        for name in TENANTS:
            used = resources.used(name)
            assert (used.replicas, used.cpu_millis, used.gpu_millis, used.memory_bytes) == recount.used(name)
