"""What happened to models: registered, versioned, reviewed, retired. Topic `models`, key = model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from events.facts.fact import Count, DecidedFact, Digest, ModelId, ModelVersion, NestedRecord, TenantId, UserId

Datatype = Literal["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"]
Review = Literal["business", "security"]


class TensorSpec(NestedRecord):
    """One input or output tensor, in the words of the Open Inference Protocol v2; -1 is a free dimension."""

    name: str
    datatype: Datatype
    shape: tuple[Annotated[int, Field(ge=-1)], ...]


class Resources(NestedRecord):
    """What a replica of this model asks for by default."""

    cpu_millis: Count = 100
    memory_bytes: Count = 0
    gpu_millis: Count = 0


class Technical(NestedRecord):
    """The technical half of the description spec: what it eats, what it gives, what it needs."""

    format: Literal["onnx"]
    framework: str
    precision: Literal["FP32", "FP16", "INT8"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    resources: Resources = Resources()
    latency_target_us: Count = 0


class Compliance(NestedRecord):
    """The compliance half: may we run it, on what was it trained, who assessed it."""

    licence: str
    data_sources: tuple[str, ...]
    data_level: Literal["public", "internal", "confidential", "restricted"]
    filing_number: str = ""
    security_assessment: str = ""


class Lineage(NestedRecord):
    """Where a version comes from."""

    parents: tuple[ModelVersion, ...] = ()
    data_sets: tuple[str, ...] = ()
    hyperparameters: dict[str, str] = {}
    commit: str = ""
    dependencies: tuple[str, ...] = ()


class ModelRegistered(DecidedFact):
    """A name was taken, for ever. It has no version yet and cannot be called."""

    model: ModelId
    tenant: TenantId
    domain: str
    team: str
    name: str
    scenario: str
    task: str
    owner: UserId
    description: str = ""
    tags: tuple[str, ...] = ()
    compliance: Compliance


class ModelVersionAdded(DecidedFact):
    """A version exists as a draft. Its bytes are fixed by digest and can never be others."""

    model: ModelId
    tenant: TenantId
    model_version: ModelVersion
    technical: Technical
    artifact: Digest
    artifact_bytes: Count
    release_notes: str = ""
    lineage: Lineage = Lineage()
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
