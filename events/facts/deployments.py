"""What happened to deployments: what was decided (requested, shifted, rolled back) and what was seen (ready, failed). Topic `deployments`, key = model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from events.facts.fact import Count, DecidedFact, Digest, Duration, Fact, ModelId, ModelVersion, NestedRecord, NonNegative, TenantId, UserId

Percent = Annotated[int, Field(ge=0, le=100)]


class ServiceSpec(NestedRecord):
    """How a version is run. CPU and GPU in thousandths, batching bounds of the gateway."""

    replicas_min: Annotated[int, Field(ge=1, le=100)] = 1
    replicas_max: Annotated[int, Field(ge=1, le=100)] = 1
    cpu_millis: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    gpu_millis: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    memory_bytes: NonNegative = 0
    batch_max: Annotated[int, Field(ge=1, le=1024)] = 64
    timeout_us: Annotated[int, Field(ge=1000, le=600_000_000)] = 10_000_000


class VersionDeployed(DecidedFact):
    """The first version of a model takes all its calls as soon as it is ready."""

    model: ModelId
    tenant: TenantId
    model_version: ModelVersion
    artifact: Digest
    spec: ServiceSpec
    by: UserId


class RolloutStarted(DecidedFact):
    """`to_version` is loaded beside `from_version` and takes `weight_percent` of the calls once it is ready."""

    model: ModelId
    tenant: TenantId
    from_version: ModelVersion
    to_version: ModelVersion
    artifact: Digest
    weight_percent: Percent
    spec: ServiceSpec
    by: UserId


class RolloutAdvanced(DecidedFact):
    """The share of the new version changed."""

    model: ModelId
    to_version: ModelVersion
    weight_percent: Percent
    by: UserId


class RolloutPromoted(DecidedFact):
    """The new version takes all calls; the old one stays loaded, so that going back is one step."""

    model: ModelId
    from_version: ModelVersion
    to_version: ModelVersion
    by: UserId


class RolledBack(DecidedFact):
    """All calls go to `to_version` again. `gate_state` is the evidence when a gate decided it (K25), empty when a person did."""

    model: ModelId
    from_version: ModelVersion
    to_version: ModelVersion
    reason: str
    gate_state: str = ""
    by: UserId


class VersionUndeployed(DecidedFact):
    """The version is unloaded. Only this fact takes an application away (K18)."""

    model: ModelId
    model_version: ModelVersion
    reason: str
    by: UserId


class VersionReady(Fact):
    """The controller saw the version serve, with this many replicas, at this decided position."""

    model: ModelId
    model_version: ModelVersion
    replicas: Count
    position: Count
    load_us: Duration = 0


class VersionFailed(Fact):
    """The controller saw the version fail to serve; what was live stays live."""

    model: ModelId
    model_version: ModelVersion
    error_code: str
    message: str
    position: Count


class RouteApplied(Fact):
    """A gateway routes by every decided fact up to `position` (K19)."""

    model: ModelId
    gateway: str
    epoch: str
    position: Count
    weights: dict[str, int]
