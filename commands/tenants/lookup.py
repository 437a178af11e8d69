"""What other features ask of tenants before they decide."""

from __future__ import annotations

from access.principal import require_tenant
from commands.http.command_app import AuthorizedCall, CommandApp
from commands.http.problem_answers import HttpProblem, access_answer, rejected_answer
from commands.processor.rejection import Rejected
from commands.tenants.state import TENANT, ActiveTenant, active_tenant
from events.facts.fact import TenantId


def existing_tenant(app: CommandApp, name: str) -> ActiveTenant:
    """Raises HttpProblem when there is none."""
    tenant = active_tenant(app.aggregates.load(TENANT, name))
    if isinstance(tenant, Rejected):
        raise HttpProblem(rejected_answer(tenant))
    return tenant


def acting_tenant(app: CommandApp, call: AuthorizedCall, requested: str | None) -> TenantId:
    """The tenant that a request is for: the one it names, else the caller's own. Raises HttpProblem."""
    tenant = TenantId(requested or call.principal.tenant)
    foreign = require_tenant(call.principal, tenant)
    if foreign is not None:
        raise HttpProblem(access_answer(foreign))
    existing_tenant(app, tenant)
    return tenant
