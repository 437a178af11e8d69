"""What happened to models: registered, versioned, reviewed, retired. Topic `models`, key = model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from events.facts.fact import (
    Count,
    DecidedFact,
    Digest,
    Line,
    ModelId,
    ModelVersion,
    NestedRecord,
    NonNegative,
    OptionalLine,
    TenantId,
    Text,
    UserId,
)

Datatype = Literal["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"]
Review = Literal["business", "security"]


class TensorSpec(NestedRecord):
    """One input or output tensor, in the words of the Open Inference Protocol v2; -1 is a free dimension."""

    name: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 128})]
    datatype: Datatype
    shape: Annotated[
        tuple[Annotated[int, Field(ge=-1, json_schema_extra={"maximum": 1 << 31})], ...], Field(json_schema_extra={"maxItems": 16})
    ]
    nan_allowed: Annotated[bool, Field(description="NaN and infinity are values of this input, as of an imputer's.")] = False


def _described_once(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    seen: set[str] = set()
    for t in tensors:
        if not t.name or len(t.name) > 128 or len(t.shape) > 16 or any(d > 1 << 31 for d in t.shape):
            raise PydanticCustomError("tensor_malformed", "a tensor has a name of 1…128 characters and at most 16 dimensions below 2³¹")
        if t.name in seen:
            raise PydanticCustomError("tensor_twice", "tensor '{name}' is described twice", {"name": t.name})
        seen.add(t.name)
    return tensors


Tensors = Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=256), AfterValidator(_described_once)]


class Resources(NestedRecord):
    """What a replica of this model asks for by default."""

    cpu_millis: NonNegative = 100
    memory_bytes: NonNegative = 0
    gpu_millis: NonNegative = 0


class Technical(NestedRecord):
    """The technical half of the description spec: what it eats, what it gives, what it needs."""

    format: Literal["onnx"]
    framework: Line
    precision: Literal["FP32", "FP16", "INT8"]
    inputs: Tensors
    outputs: Tensors
    resources: Resources = Resources()
    latency_target_us: NonNegative = 0


class Compliance(NestedRecord):
    """The compliance half: may we run it, on what was it trained, who assessed it."""

    licence: Line
    data_sources: Annotated[tuple[Line, ...], Field(min_length=1, max_length=100)]
    data_level: Literal["public", "internal", "confidential", "restricted"]
    filing_number: OptionalLine = ""
    security_assessment: Annotated[
        str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$", description="Digest of the assessment, in the artifact store; empty: none.")
    ] = ""


class Lineage(NestedRecord):
    """Where a version comes from."""

    parents: Annotated[tuple[Annotated[ModelVersion, Field(min_length=1, max_length=200)], ...], Field(max_length=20)] = ()
    data_sets: Annotated[tuple[Line, ...], Field(max_length=100)] = ()
    hyperparameters: Annotated[dict[Line, OptionalLine], Field(max_length=200)] = {}
    commit: OptionalLine = ""
    dependencies: Annotated[tuple[Line, ...], Field(max_length=500)] = ()


# No hyphen in domain and team: else model-a-b-c could be team "b" or domain "a-b", and two names would be one id.
Segment = Annotated[str, Field(pattern=r"^[a-z0-9]{1,40}$")]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]


class Registration(NestedRecord):
    """What a team says of a model when it takes its name. The one list of it: request, command and fact are made from it."""

    domain: Segment
    team: Segment
    name: ModelName
    scenario: Line
    task: Line
    compliance: Compliance
    description: Text = ""
    tags: Annotated[tuple[Line, ...], Field(max_length=50)] = ()


class VersionContent(NestedRecord):
    """What a version is. The one list of it: request, command and fact are made from it."""

    technical: Technical
    artifact: Digest
    release_notes: Text = ""
    lineage: Lineage = Lineage()


class ModelRegistered(Registration, DecidedFact):
    """A name was taken, for ever. It has no version yet and cannot be called."""

    model: ModelId
    tenant: TenantId
    owner: UserId


class ModelVersionAdded(VersionContent, DecidedFact):
    """A version exists as a draft. Its bytes are fixed by digest and can never be others."""

    model: ModelId
    tenant: TenantId
    model_version: ModelVersion
    artifact_bytes: Count
    by: UserId


class ModelVersionSubmitted(DecidedFact):
    """A draft asks for review; both reviews are open."""

    model: ModelId
    model_version: ModelVersion
    by: UserId


class ModelVersionReviewed(DecidedFact):
    """One reviewer gave one verdict. A rejection ends the review and returns the version to draft."""

    model: ModelId
    model_version: ModelVersion
    review: Review
    verdict: Literal["approved", "rejected"]
    by: UserId
    comment: str = ""


class ModelVersionApproved(DecidedFact):
    """Business and security approved, by two people: the version may be deployed."""

    model: ModelId
    model_version: ModelVersion
    business_by: UserId
    security_by: UserId


class ModelRetired(DecidedFact):
    """The model takes no more calls: the gateway answers 410 and names the successor. Its history stays, its name is never given again."""

    model: ModelId
    reason: str
    successor: str = ""
    by: UserId
