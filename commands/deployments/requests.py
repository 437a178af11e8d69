"""The requests about a model's traffic, with every bound on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from commands.deployments.decide import AdvanceRollout, DeployVersion, RollBack, StartRollout
from commands.http.bounds import INT64_MAX, NonNegative, Reason, RequestBody
from commands.models.requests import SemVerText
from events.facts.deployments import ServiceSpec

Weight = Annotated[int, Field(description="Percent of the calls, 1…99", ge=-INT64_MAX, le=INT64_MAX)]


class SpecRequest(RequestBody):
    replicas_min: Annotated[int, Field(ge=1, le=100)] = 1
    replicas_max: Annotated[int, Field(ge=1, le=100)] = 1
    cpu_millis: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    gpu_millis: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    memory_bytes: NonNegative = 0
    batch_max: Annotated[int, Field(ge=1, le=1024)] = 64
    timeout_us: Annotated[int, Field(ge=1000, le=600_000_000)] = 10_000_000

    def fact(self) -> ServiceSpec:
        return ServiceSpec(**self.model_dump())


def _spec_order(spec: SpecRequest) -> SpecRequest:
    if spec.replicas_max < spec.replicas_min:
        raise PydanticCustomError("replicas_reversed", "replicas_max is below replicas_min")
    return spec


Spec = Annotated[SpecRequest, AfterValidator(_spec_order)]


class DeployRequest(RequestBody):
    version: SemVerText
    spec: Spec = SpecRequest()

    def command(self) -> DeployVersion:
        return DeployVersion(self.version, self.spec.fact())


class RolloutRequest(RequestBody):
    version: SemVerText
    weight_percent: Weight
    spec: Spec | None = None

    def command(self) -> StartRollout:
        return StartRollout(self.version, self.weight_percent, self.spec.fact() if self.spec else None)


class AdvanceRequest(RequestBody):
    weight_percent: Weight

    def command(self) -> AdvanceRollout:
        return AdvanceRollout(self.weight_percent)


class RollBackRequest(RequestBody):
    reason: Reason
    to_version: SemVerText | None = Field(None, description="None: what was live before.")

    def command(self) -> RollBack:
        return RollBack(self.reason, self.to_version or "")
