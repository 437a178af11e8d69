"""What a tenant's loaded versions take together, and how much they may: folded from topics `deployments` and `accounts`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from events.facts.accounts import ResourceQuota, TenantQuotaSet
from events.facts.deployments import ServiceSpec, VersionDeployed
from lifecycle.deployment import Deployment, DeploymentFact, NotDeployed, evolve, specs
from lifecycle.misfit import Misfit

MEMORY_BYTES_DEFAULT = 256 << 20
"""What a replica counts whose service spec names no memory: about twice what the replica of a small model takes when idle."""


@dataclass(frozen=True, slots=True)
class Resources:
    """CPU and GPU in thousandths. Members of a difference may be negative."""

    replicas: int = 0
    cpu_millis: int = 0
    gpu_millis: int = 0
    memory_bytes: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.replicas + other.replicas,
            self.cpu_millis + other.cpu_millis,
            self.gpu_millis + other.gpu_millis,
            self.memory_bytes + other.memory_bytes,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.replicas - other.replicas,
            self.cpu_millis - other.cpu_millis,
            self.gpu_millis - other.gpu_millis,
            self.memory_bytes - other.memory_bytes,
        )


NOTHING = Resources()
QUOTA_DEFAULT = Resources(replicas=200, cpu_millis=200_000, gpu_millis=16_000, memory_bytes=512 << 30)
"""Of a tenant for which nobody decided another: enough for a team's models, and a small part of a cluster. A rule and no setting: every
process must read the same quota from the same log."""


def of_spec(spec: ServiceSpec) -> Resources:
    """The most that a version which is run like this may take."""
    replicas = max(spec.replicas_min, spec.replicas_max)
    memory_bytes = spec.memory_bytes or MEMORY_BYTES_DEFAULT
    return Resources(replicas, replicas * spec.cpu_millis, replicas * spec.gpu_millis, replicas * memory_bytes)


def taken(deployment: Deployment) -> Resources:
    """Of all loaded versions: the live one, a candidate, and standby ones, which keep their replicas."""
    return sum(map(of_spec, specs(deployment).values()), NOTHING)


def quota_of(fact: ResourceQuota) -> Resources:
    return Resources(**fact.shared(ResourceQuota))


@dataclass(frozen=True, slots=True)
class _Deployed:
    tenant: str
    deployment: Deployment
    taken: Resources


class TenantResources:
    """A fold. Cost and size: what the facts say of; a question costs the same however many models a tenant has."""

    def __init__(self) -> None:
        self._quotas: dict[str, Resources] = {}
        self._used: dict[str, Resources] = {}
        self._models: dict[str, _Deployed] = {}

    def quota(self, tenant: str) -> Resources:
        return self._quotas.get(tenant, QUOTA_DEFAULT)

    def used(self, tenant: str) -> Resources:
        return self._used.get(tenant, NOTHING)

    def apply(self, fact: DeploymentFact | TenantQuotaSet) -> Misfit | None:
        """A fact that does not follow changes nothing, and why is returned."""
        if isinstance(fact, TenantQuotaSet):
            self._quotas[fact.tenant] = quota_of(fact)
            return None
        was = self._models.get(fact.model)
        if was is None:
            was = _Deployed(fact.tenant if isinstance(fact, VersionDeployed) else "", NotDeployed(), NOTHING)
        deployment = evolve(was.deployment, fact)
        if isinstance(deployment, Misfit):
            return deployment
        now = replace(was, deployment=deployment, taken=taken(deployment))
        self._used[now.tenant] = self.used(now.tenant) + (now.taken - was.taken)
        if isinstance(deployment, NotDeployed):
            self._models.pop(fact.model, None)
        else:
            self._models[fact.model] = now
        return None
