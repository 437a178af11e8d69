"""By a tenant's quota: what may grow, what is always given back, and what a refusal says. Against random sequences with a recount."""

from __future__ import annotations

from dataclasses import astuple, fields

from hypothesis import given as for_all
from hypothesis import strategies as st

from commands.processor.rejection import Rejected
from commands.processor.tenant_quota import TenantQuota, TenantShare, quota_after
from commands.tenants import decide as tenant_decide
from commands.tenants.decide import CreateTenant, SetQuota
from commands.tenants.state import TENANT, ActiveTenant, NoTenant, TenantState
from events.facts.accounts import ResourceQuota, TenantQuotaSet, TenantTerms
from events.facts.fact import TenantId
from lifecycle.resources import NOTHING, QUOTA_DEFAULT, Resources
from tests.support.decisions import Rules, given

TEN = Resources(10, 10, 10, 10)
tenant = Rules(tenant_decide.decide, TENANT.evolve)
ACME: TenantState = given(tenant, NoTenant(), CreateTenant(TenantId("acme"), TenantTerms(display_name="Acme"))).state


def share(*taken: int) -> TenantShare:
    return TenantShare("acme", Resources(*taken))


def test_what_fits_is_taken_and_the_last_unit_of_the_quota_may_be_used() -> None:
    was = TenantQuota(3, TEN, Resources(8, 8, 8, 8))
    assert quota_after(was, share(), share(2, 2, 2, 2)) == TenantQuota(4, TEN, TEN)
    assert isinstance(quota_after(was, share(), share(3, 0, 0, 0)), Rejected)


def test_a_refusal_names_each_amount_that_does_not_fit_with_its_field_the_figures_and_what_to_do() -> None:
    refused = quota_after(TenantQuota(3, TEN, Resources(8, 1, 0, 9)), share(1, 1, 0, 1), share(4, 1, 0, 5))
    assert isinstance(refused, Rejected)
    assert refused.ground == "conflict"
    assert [(v.code, v.field) for v in refused.violations] == [
        ("quota_exceeded", "spec.replicas_max"),
        ("quota_exceeded", "spec.memory_bytes"),
    ]
    assert "8 now, 11 with this, quota 10" in refused.violations[0].message
    assert all(v.remedy for v in refused.violations)


def test_above_its_quota_a_tenant_may_give_back_and_only_what_grows_is_refused() -> None:
    above = TenantQuota(3, TEN, Resources(20, 5, 5, 20))
    assert quota_after(above, share(9, 1, 1, 1), share(8, 1, 1, 1)) == TenantQuota(3, TEN, Resources(19, 5, 5, 20)), "no turn is needed"
    assert quota_after(above, share(9, 1, 1, 1), share(9, 2, 1, 1)) == TenantQuota(4, TEN, Resources(20, 6, 5, 20)), "CPU fits"
    assert isinstance(quota_after(above, share(1, 9, 1, 1), share(2, 1, 1, 1)), Rejected)


def test_another_quota_takes_its_turn_and_is_never_refused() -> None:
    was = TenantQuota(3, TEN, TEN)
    lower = TenantShare("acme", quota=Resources(1, 1, 1, 1))
    assert quota_after(was, TenantShare("acme"), lower) == TenantQuota(4, Resources(1, 1, 1, 1), TEN)


amounts = st.builds(Resources, *(st.integers(0, 6) for _ in fields(Resources)))


@for_all(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), amounts), max_size=40))
def test_after_any_sequence_the_use_is_what_a_recount_finds_and_nothing_grew_past_the_quota(
    steps: list[tuple[str, bool, Resources]],
) -> None:
    now, taken = TenantQuota(0, TEN, NOTHING), dict.fromkeys("abc", NOTHING)
    for model, sets_quota, amount in steps:
        before = [sum(column) for column in zip(*map(astuple, taken.values()), strict=True)]
        if sets_quota:
            result = quota_after(now, TenantShare("acme"), TenantShare("acme", quota=amount))
            assert isinstance(result, TenantQuota)
        else:
            result = quota_after(now, TenantShare("acme", taken[model]), TenantShare("acme", amount))
            wanted = [b - t + a for b, t, a in zip(before, astuple(taken[model]), astuple(amount), strict=True)]
            passes = [w > b and w > q for w, b, q in zip(wanted, before, astuple(now.quota), strict=True)]
            assert isinstance(result, Rejected) == any(passes)
        if isinstance(result, Rejected):
            assert len(result.violations) >= 1
            continue
        if not sets_quota:
            taken[model] = amount
        now = result
        assert list(astuple(now.used)) == [sum(column) for column in zip(*map(astuple, taken.values()), strict=True)]


# --- which quota is decided


def quota(**amount: int) -> SetQuota:
    return SetQuota(ResourceQuota(**{name: getattr(QUOTA_DEFAULT, name) for name in ResourceQuota.model_fields} | amount), "a project")


def test_a_quota_is_decided_with_its_reason_and_whoever_decided_it() -> None:
    (fact,) = given(tenant, ACME).when(quota(replicas=7), by="olga").facts
    assert isinstance(fact, TenantQuotaSet)
    assert (fact.tenant, fact.replicas, fact.cpu_millis, fact.reason, fact.by) == ("acme", 7, QUOTA_DEFAULT.cpu_millis, "a project", "olga")
    state = given(tenant, ACME, quota(replicas=7)).state
    assert isinstance(state, ActiveTenant)
    assert (state.quota, state.version) == (Resources(7, *astuple(QUOTA_DEFAULT)[1:]), 2)


def test_the_quota_that_holds_already_is_not_decided_again() -> None:
    assert given(tenant, ACME).when(quota()).facts == ()
    assert given(tenant, given(tenant, ACME, quota(replicas=7)).state).when(quota(replicas=7)).facts == ()
    given(tenant, NoTenant()).when(quota(replicas=7)).then_rejected("tenant_unknown")


def test_the_members_of_a_quota_are_those_that_are_counted() -> None:
    assert tuple(ResourceQuota.model_fields) == tuple(f.name for f in fields(Resources))
