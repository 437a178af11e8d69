"""The requests about a model's traffic, with every bound on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from commands.deployments.decide import AdvanceRollout, DeployVersion, RollBack, StartRollout
from commands.http.bounds import Reason, RequestBody
from commands.models.requests import SemVerText
from events.facts.deployments import ServiceSpec
from events.facts.fact import Signed

Weight = Annotated[Signed, Field(description="Percent of the calls", json_schema_extra={"minimum": 1, "maximum": 99})]


def _spec_order(spec: ServiceSpec) -> ServiceSpec:
    if spec.replicas_max < spec.replicas_min:
        raise PydanticCustomError("replicas_reversed", "replicas_max is below replicas_min")
    return spec


Spec = Annotated[ServiceSpec, AfterValidator(_spec_order)]


class DeployRequest(RequestBody):
    version: SemVerText
    spec: Spec = ServiceSpec()

    def command(self) -> DeployVersion:
        return DeployVersion(self.version, self.spec)


class RolloutRequest(RequestBody):
    version: SemVerText
    weight_percent: Weight
    spec: Spec | None = None

    def command(self) -> StartRollout:
        return StartRollout(self.version, self.weight_percent, self.spec)


class AdvanceRequest(RequestBody):
    weight_percent: Weight

    def command(self) -> AdvanceRollout:
        return AdvanceRollout(self.weight_percent)


class RollBackRequest(RequestBody):
    reason: Reason
    to_version: SemVerText | None = Field(None, description="None: what was live before.")

    def command(self) -> RollBack:
        return RollBack(self.reason, self.to_version or "")
