"""Who asks, and for whom. The refusals are those of every listener (`access`)."""

from __future__ import annotations

from access.principal import Principal, require_scope, require_tenant
from events.facts.accounts import Scope
from projections.query_api.problems import access_problem


def require(caller: Principal, scope: Scope) -> Principal:
    """The caller. Raises Problem (403) without the scope."""
    lacking = require_scope(caller, scope)
    if lacking is not None:
        raise access_problem(lacking)
    return caller


def tenant_asked(caller: Principal, tenant: str) -> str:
    """The tenant a question is about: the one it names, else the caller's own, else all (empty) for an admin. Raises Problem (403):
    the refusal does not tell whether a foreign tenant exists."""
    if not tenant:
        return "" if caller.admin else caller.tenant
    foreign = require_tenant(caller, tenant)
    if foreign is not None:
        raise access_problem(foreign)
    return tenant
