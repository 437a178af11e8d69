"""The requests about models and their versions, with every bound on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from commands.http.bounds import Reason, RequestBody
from commands.models.decide import AddVersion, RegisterModel, RetireModel, ReviewVersion
from commands.models.semver import PATTERN, TEXT_MAX, parse
from events.facts.fact import ModelId, Slug, TenantId, UserId
from events.facts.models import ModelName, Registration, Review, VersionContent


def _semver(text: str) -> str:
    if parse(text) is None:
        raise PydanticCustomError("version_not_semver", "'{text}' is no SemVer 2.0", {"text": text})
    return text


def _no_version_end(text: str) -> str:
    # model-a-b-c-v2 could be read as version 2 of model-a-b-c.
    if any(part[:1] == "v" and part[1:].isdigit() for part in text.split("-")):
        raise PydanticCustomError("name_like_version", "a part like 'v2' in a name reads as a version")
    return text


SemVerText = Annotated[str, Field(max_length=TEXT_MAX, json_schema_extra={"pattern": PATTERN}), AfterValidator(_semver)]


class RegisterModelRequest(Registration):
    name: Annotated[ModelName, AfterValidator(_no_version_end)]
    owner: Annotated[str, Field(max_length=64)] = Field("", description="Empty: whoever registers.")
    tenant: Slug | None = Field(None, description="Only for an admin acting for a tenant.")

    @property
    def model(self) -> ModelId:
        return ModelId(f"model-{self.domain}-{self.team}-{self.name}")

    def command(self, tenant: TenantId, caller: UserId) -> RegisterModel:
        return RegisterModel(self.model, tenant, UserId(self.owner or caller), Registration(**self.shared(Registration)))


class AddVersionRequest(VersionContent):
    version: SemVerText

    def command(self, artifact_bytes: int, parents_known: frozenset[str]) -> AddVersion:
        return AddVersion(self.version, artifact_bytes, VersionContent(**self.shared(VersionContent)), parents_known)


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
