"""The requests about models and their versions, with every bound on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from commands.http.bounds import Line, NonNegative, OptionalLine, Reason, RequestBody, Slug, Text
from commands.models.decide import RegisterModel, RetireModel, ReviewVersion
from commands.models.semver import TEXT_MAX, parse
from events.facts.fact import Digest, ModelId, TenantId, UserId
from events.facts.models import Compliance, Lineage, Review, Technical, TensorSpec

# No hyphen in domain and team: else model-a-b-c could be team "b" or domain "a-b", and two names would be one id.
Segment = Annotated[str, Field(pattern=r"^[a-z0-9]{1,40}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]


def _semver(text: str) -> str:
    if parse(text) is None:
        raise PydanticCustomError("version_not_semver", "'{text}' is no SemVer 2.0", {"text": text})
    return text


def _no_version_end(text: str) -> str:
    # model-a-b-c-v2 could be read as version 2 of model-a-b-c.
    if any(part[:1] == "v" and part[1:].isdigit() for part in text.split("-")):
        raise PydanticCustomError("name_like_version", "a part like 'v2' in a name reads as a version")
    return text


def _unique_tensors(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    seen: set[str] = set()
    for t in tensors:
        if not t.name or len(t.name) > 128 or len(t.shape) > 16 or any(d > 1 << 31 for d in t.shape):
            raise PydanticCustomError("tensor_malformed", "a tensor has a name of 1…128 characters and at most 16 dimensions below 2³¹")
        if t.name in seen:
            raise PydanticCustomError("tensor_twice", "tensor '{name}' is described twice", {"name": t.name})
        seen.add(t.name)
    return tensors


SemVerText = Annotated[str, Field(max_length=TEXT_MAX), AfterValidator(_semver)]
Tensors = Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=256), AfterValidator(_unique_tensors)]


class ComplianceRequest(RequestBody):
    licence: Line
    data_sources: Annotated[tuple[Line, ...], Field(min_length=1, max_length=100)]
    data_level: Literal["public", "internal", "confidential", "restricted"]
    filing_number: OptionalLine = ""
    security_assessment: Literal[""] | Digest = Field("", description="Digest of the assessment, in the artifact store.")

    def fact(self) -> Compliance:
        return Compliance(**self.model_dump())


class ResourcesRequest(RequestBody):
    cpu_millis: NonNegative = 100
    memory_bytes: NonNegative = 0
    gpu_millis: NonNegative = 0


class TechnicalRequest(RequestBody):
    format: Literal["onnx"]
    framework: Line
    precision: Literal["FP32", "FP16", "INT8"]
    inputs: Tensors
    outputs: Tensors
    resources: ResourcesRequest = ResourcesRequest()
    latency_target_us: NonNegative = 0

    def fact(self) -> Technical:
        return Technical.model_validate(self.model_dump())


class LineageRequest(RequestBody):
    parents: Annotated[tuple[Line, ...], Field(max_length=20)] = ()
    data_sets: Annotated[tuple[Line, ...], Field(max_length=100)] = ()
    hyperparameters: Annotated[dict[Line, OptionalLine], Field(max_length=200)] = {}
    commit: OptionalLine = ""
    dependencies: Annotated[tuple[Line, ...], Field(max_length=500)] = ()

    def fact(self) -> Lineage:
        return Lineage(**self.model_dump())


class RegisterModelRequest(RequestBody):
    domain: Segment
    team: Segment
    name: Annotated[Name, AfterValidator(_no_version_end)]
    scenario: Line
    task: Line
    compliance: ComplianceRequest
    owner: Annotated[str, Field(max_length=64)] = Field("", description="Empty: whoever registers.")
    description: Text = ""
    tags: Annotated[tuple[Line, ...], Field(max_length=50)] = ()
    tenant: Slug | None = Field(None, description="Only for an admin acting for a tenant.")

    @property
    def model(self) -> ModelId:
        return ModelId(f"model-{self.domain}-{self.team}-{self.name}")

    def command(self, tenant: TenantId, caller: UserId) -> RegisterModel:
        return RegisterModel(
            self.model,
            tenant,
            self.domain,
            self.team,
            self.name,
            self.scenario,
            self.task,
            UserId(self.owner or caller),
            self.description,
            self.tags,
            self.compliance.fact(),
        )


class AddVersionRequest(RequestBody):
    version: SemVerText
    technical: TechnicalRequest
    artifact: Digest
    release_notes: Text = ""
    lineage: LineageRequest = LineageRequest()


class ReviewRequest(RequestBody):
    review: Review
    verdict: Literal["approved", "rejected"]
    comment: Annotated[str, Field(max_length=1000)] = ""

    def command(self, version: str) -> ReviewVersion:
        return ReviewVersion(version, self.review, self.verdict, self.comment)


class RetireRequest(RequestBody):
    reason: Reason
    successor: Annotated[str, Field(max_length=200)] = ""

    def command(self) -> RetireModel:
        return RetireModel(self.reason, self.successor)
