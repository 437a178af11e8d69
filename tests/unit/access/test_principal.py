"""What a key allows its holder to do."""

from __future__ import annotations

from typing import get_args

import pytest

from access.codes import TENANT_FOREIGN, scope_missing
from access.principal import FIRST_ADMIN, PLATFORM, Principal, require_scope, require_tenant
from events.facts.accounts import Scope
from events.facts.fact import KeyId, TenantId, UserId

SCOPES: tuple[Scope, ...] = get_args(Scope)


def holder(tenant: str, *scopes: Scope) -> Principal:
    return Principal(TenantId(tenant), UserId("u"), KeyId("k"), frozenset(scopes), {}, {})


def test_a_key_may_do_what_one_of_its_scopes_allows() -> None:
    reader = holder("acme", "read", "models")
    assert reader.may("read") and reader.may("deploy", "models")
    assert not reader.may("deploy") and not reader.may("admin", "invoke")


@pytest.mark.parametrize("scope", SCOPES)
def test_an_admin_may_do_everything_except_make_calls(scope: Scope) -> None:
    admin = holder(PLATFORM, "admin")
    assert admin.may(scope) == (scope != "invoke")
    assert holder(PLATFORM, "admin", "invoke").may(scope)
    assert admin.may("invoke", "read")


def test_a_key_acts_for_its_own_tenant_and_an_admin_key_for_all_tenants() -> None:
    assert holder("acme", "read").acts_for("acme") and not holder("acme", *set(SCOPES) - {"admin"}).acts_for("globex")
    assert holder(PLATFORM, "admin").acts_for("globex")


def test_owners_reviewers_and_admins_see_drafts() -> None:
    assert holder("acme", "read").sees("acme")
    assert holder("platform", "admin").sees("acme")
    assert holder("platform", "review:security").sees("acme") and holder("platform", "review:business").sees("acme")
    assert not holder("globex", "read", "models", "deploy", "invoke").sees("acme")


def test_a_missing_scope_and_a_foreign_tenant_are_refused() -> None:
    reader = holder("acme", "read")
    assert require_scope(reader, "read") is None and require_tenant(reader, "acme") is None
    assert require_scope(reader, "deploy", "models") == scope_missing("deploy", "models")
    assert require_tenant(reader, "globex") is TENANT_FOREIGN


def test_the_first_admin_is_the_operator_and_makes_no_calls() -> None:
    assert (FIRST_ADMIN.tenant, FIRST_ADMIN.admin, FIRST_ADMIN.may("invoke")) == (PLATFORM, True, False)
