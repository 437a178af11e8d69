"""What the command API takes: the shape of each request body, with every bound on it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from commands.models.semver import TEXT_MAX, parse
from events.facts.accounts import KEY_DIMENSIONS, KeyDimensions, Scope
from events.facts.bills import BillCounts, BillLine
from events.facts.deployments import ServiceSpec
from events.facts.fact import DEFAULT_CURRENCY, Digest
from events.facts.meters import READINGS, Meter
from events.facts.models import Compliance, Lineage, Review, Technical, TensorSpec
from events.facts.prices import Price

INT64_MAX = (1 << 63) - 1

Text = Annotated[str, Field(max_length=10_000)]
Line = Annotated[str, Field(min_length=1, max_length=200)]
Words = Annotated[str, Field(max_length=200)]
# No hyphen in domain and team: else model-a-b-c could be team "b" or domain "a-b", and two names would be one id.
Segment = Annotated[str, Field(pattern=r"^[a-z0-9]{1,40}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Reason = Annotated[str, Field(min_length=1, max_length=1000)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
Whole = Annotated[int, Field(ge=0, le=INT64_MAX)]
Signed = Annotated[int, Field(ge=-INT64_MAX, le=INT64_MAX)]
HEX_256 = r"^[0-9a-f]{64}$"
Weight = Annotated[int, Field(description="Percent of the calls, 1…99", ge=-INT64_MAX, le=INT64_MAX)]


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


# What is in a path becomes part of an aggregate's id: nothing else gets as far as the store.
ModelPath = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,200}$")]
NamePath = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,63}$")]
PartPath = Annotated[str, Path(max_length=200)]
WordPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
WholePath = Annotated[int, Path(ge=0, le=INT64_MAX)]

SemVerText = Annotated[str, Field(max_length=TEXT_MAX), AfterValidator(_semver)]
Tensors = Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=256), AfterValidator(_unique_tensors)]


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComplianceBody(Body):
    licence: Line
    data_sources: Annotated[tuple[Line, ...], Field(min_length=1, max_length=100)]
    data_level: Literal["public", "internal", "confidential", "restricted"]
    filing_number: Words = ""
    security_assessment: Literal[""] | Digest = Field("", description="Digest of the assessment, in the artifact store.")

    def fact(self) -> Compliance:
        return Compliance(**self.model_dump())


class ResourcesBody(Body):
    cpu_millis: Whole = 100
    memory_bytes: Whole = 0
    gpu_millis: Whole = 0


class TechnicalBody(Body):
    format: Literal["onnx"]
    framework: Line
    precision: Literal["FP32", "FP16", "INT8"]
    inputs: Tensors
    outputs: Tensors
    resources: ResourcesBody = ResourcesBody()
    latency_target_us: Whole = 0

    def fact(self) -> Technical:
        return Technical.model_validate(self.model_dump())


class LineageBody(Body):
    parents: Annotated[tuple[Line, ...], Field(max_length=20)] = ()
    data_sets: Annotated[tuple[Line, ...], Field(max_length=100)] = ()
    hyperparameters: Annotated[dict[Line, Words], Field(max_length=200)] = {}
    commit: Words = ""
    dependencies: Annotated[tuple[Line, ...], Field(max_length=500)] = ()

    def fact(self) -> Lineage:
        return Lineage(**self.model_dump())


class RegisterModelBody(Body):
    domain: Segment
    team: Segment
    name: Annotated[Name, AfterValidator(_no_version_end)]
    scenario: Line
    task: Line
    compliance: ComplianceBody
    owner: Annotated[str, Field(max_length=64)] = Field("", description="Empty: whoever registers.")
    description: Text = ""
    tags: Annotated[tuple[Line, ...], Field(max_length=50)] = ()
    tenant: Slug | None = Field(None, description="Only for an admin acting for a tenant.")


class AddVersionBody(Body):
    version: SemVerText
    technical: TechnicalBody
    artifact: Digest
    release_notes: Text = ""
    lineage: LineageBody = LineageBody()


class ReviewBody(Body):
    review: Review
    verdict: Literal["approved", "rejected"]
    comment: Annotated[str, Field(max_length=1000)] = ""


class SpecBody(Body):
    replicas_min: Annotated[int, Field(ge=1, le=100)] = 1
    replicas_max: Annotated[int, Field(ge=1, le=100)] = 1
    cpu_millis: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    gpu_millis: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    memory_bytes: Whole = 0
    batch_max: Annotated[int, Field(ge=1, le=1024)] = 64
    timeout_us: Annotated[int, Field(ge=1000, le=600_000_000)] = 10_000_000

    def fact(self) -> ServiceSpec:
        return ServiceSpec(**self.model_dump())


def _spec_order(spec: SpecBody) -> SpecBody:
    if spec.replicas_max < spec.replicas_min:
        raise PydanticCustomError("replicas_reversed", "replicas_max is below replicas_min")
    return spec


Spec = Annotated[SpecBody, AfterValidator(_spec_order)]


class DeployBody(Body):
    version: SemVerText
    spec: Spec = SpecBody()


class RolloutBody(Body):
    version: SemVerText
    weight_percent: Weight
    spec: Spec | None = None


class AdvanceBody(Body):
    weight_percent: Weight


class RollBackBody(Body):
    reason: Reason
    to_version: SemVerText | None = Field(None, description="None: what was live before.")


class RetireBody(Body):
    reason: Reason
    successor: Annotated[str, Field(max_length=200)] = ""


class CreateTenantBody(Body):
    tenant: Slug
    display_name: Line
    price_book: Slug = "standard"
    currency: Currency = DEFAULT_CURRENCY
    timezone: Annotated[str, Field(max_length=64)] = "Asia/Shanghai"


def _each_once(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    if len(set(scopes)) != len(scopes):
        raise PydanticCustomError("scope_twice", "a scope is named twice")
    return scopes


class IssueKeyBody(KeyDimensions, Body):
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=7), AfterValidator(_each_once)]
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = Field(None, description="A pseudonym; none: minted.")
    labels: Annotated[dict[Slug, Words], Field(max_length=20)] = {}
    expires_at: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = Field(None, description="µs UTC; none: never.")

    def dimensions(self) -> KeyDimensions:
        return KeyDimensions(**self.model_dump(include=set(KEY_DIMENSIONS)))


_AMOUNT_MAX = 10**18
"""Micro-units of currency: what an amount in a fact can hold."""


class PriceBody(Body):
    model: Line
    meter: Meter
    amount_micros: Annotated[int, Field(ge=0, le=10**15)]
    per_units: Annotated[int, Field(ge=1, le=10**15)] = 1

    @model_validator(mode="after")
    def _payable(self) -> Self:
        """20 CNY an hour published as 20 000 000 per microsecond would make a bill that no fact can hold, and that tenant never had another."""
        if self.amount_micros * READINGS[self.meter].quantity_max // self.per_units > _AMOUNT_MAX:
            said = {"amount": self.amount_micros, "per": self.per_units, "meter": self.meter}
            raise PydanticCustomError("price_too_high", "{amount} micro-units per {per} of {meter} is more than a bill can hold", said)
        return self

    def fact(self) -> Price:
        return Price(**self.model_dump())


class PublishBody(Body):
    currency: Currency = DEFAULT_CURRENCY
    effective_from: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = Field(
        None, description="µs UTC; none: now. Up to five minutes back is taken as now: prices never change backwards."
    )
    prices: Annotated[tuple[PriceBody, ...], Field(min_length=1, max_length=10_000)]


class BillLineBody(Body):
    model: Line
    model_version: Words
    provider: Words
    meter: Meter
    book_version: Whole
    amount_per_micros: Whole
    per_units: Whole
    quantity: Signed
    amount_micros: Signed
    held: bool = False

    def fact(self) -> BillLine:
        return BillLine.model_validate(self.model_dump())


class CompleteBody(Body):
    number: Whole
    cut_event_id: Annotated[str, Field(max_length=64)]
    digest: Annotated[str, Field(pattern=HEX_256, description="SHA-256 of the canonical bill, in hex.")]
    lines: Annotated[tuple[BillLineBody, ...], Field(max_length=100_000)]
    total_micros: Signed
    facts: BillCounts
    producers_open: Whole
    excluded: Annotated[tuple[Whole, ...], Field(max_length=10_000, description="Offsets that two people gave up, in order.")] = ()


class RecordWriteOffBody(Body):
    sha256: Annotated[str, Field(pattern=HEX_256, description="SHA-256 of the record's value, in hex.")]
    reason: Reason


class ApproveRecordBody(Body):
    sha256: Annotated[str, Field(pattern=HEX_256, description="Of the bytes you approve: must be what was requested.")]


class ProducerWriteOffBody(Body):
    reason: Reason


class WrittenFact(BaseModel):
    """A fact that this request wrote."""

    name: str
    event_id: str
    version: int
    position: int


class Accepted(BaseModel):
    """The command happened. More members tell what it made."""

    model_config = ConfigDict(extra="allow")

    facts: list[WrittenFact]


class ProblemViolation(BaseModel):
    code: str
    message: str
    field: str
    remedy: str


class Problem(BaseModel):
    """RFC 9457, with our code, field, remedy, and every violation at once."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str
    remedy: str
    violations: list[ProblemViolation]
