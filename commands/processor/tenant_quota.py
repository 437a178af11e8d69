"""Whether what a command changes fits into its tenant's quota. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields

from commands.processor.rejection import Rejected
from events.process.problem import Violation
from lifecycle.resources import NOTHING, Resources

_FIELDS = {
    "replicas": "spec.replicas_max",
    "cpu_millis": "spec.cpu_millis",
    "gpu_millis": "spec.gpu_millis",
    "memory_bytes": "spec.memory_bytes",
}


@dataclass(frozen=True, slots=True)
class TenantShare:
    """What the state of one aggregate says about its tenant's resources: what its versions take, or the quota where it was decided for
    this tenant."""

    tenant: str
    taken: Resources = NOTHING
    quota: Resources | None = None


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """`version` counts the decisions that were made by this quota. Each takes the next one, in the transaction of its facts: of two that are
    made at once, by whichever processes, the store refuses one, and it is made again on what the other took."""

    version: int
    quota: Resources
    used: Resources


def quota_after(was: TenantQuota, before: TenantShare, after: TenantShare) -> TenantQuota | Rejected:
    """The tenant's quota after an aggregate's share changed. Only what grows is checked, so a tenant above its quota may shrink. The
    version grows when something was taken or the quota is another one; what only gives back needs no turn and is never refused."""
    more = after.taken - before.taken
    used = was.used + more
    quota = after.quota if after.quota is not None else was.quota
    grown = [field.name for field in fields(more) if getattr(more, field.name) > 0]
    over = [name for name in grown if getattr(used, name) > getattr(quota, name)]
    if over:
        return Rejected("conflict", tuple(_exceeded(after.tenant, name, was, used) for name in over))
    counts = bool(grown) or quota != was.quota
    return TenantQuota(was.version + 1 if counts else was.version, quota, used)


def _exceeded(tenant: str, name: str, was: TenantQuota, used: Resources) -> Violation:
    message = f"{name} of all loaded versions of {tenant}: {getattr(was.used, name)} now, {getattr(used, name)} with this, quota {getattr(was.quota, name)}"
    remedy = "ask for fewer or smaller replicas, undeploy standby versions or retire a model; an operator decides another quota"
    return Violation("quota_exceeded", message, _FIELDS[name], remedy)
