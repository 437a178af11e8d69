"""What is answered about a model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from commands.http.answers import Accepted
from events.facts.models import Technical


class Registered(Accepted):
    model: str
    tenant: str


class TrafficState(BaseModel):
    """What was decided about the calls of a model; its kind says which other members there are."""

    kind: Literal["not_deployed", "serving", "shifting", "unloading"]
    live: str = Field("", description="The version that is to take the calls.")
    candidate: str = Field("", description="The version being rolled out.")
    weight_percent: int = Field(0, description="The candidate's share of the calls.")
    before: str = Field("", description="Live before `live` was promoted.")
    standby: dict[str, Any] = Field({}, description="Version → its service, of those that are loaded and take no calls.")


class _Traffic(BaseModel):
    deployment: TrafficState | None = Field(None, description="Not of a retired model.")


class ModelAnswer(Accepted, _Traffic):
    """Where the model and its traffic stand after the command."""

    model: str
    state: Literal["active", "retired"]


class ReleaseState(BaseModel):
    technical: Technical
    artifact: str
    by: str


class VersionState(BaseModel):
    kind: Literal["draft", "pending_review", "approved"]
    release: ReleaseState
    submitted_by: str | None = None
    business_by: str | None = None
    security_by: str | None = None


class WholeModel(_Traffic):
    """Everything that commands on a model are decided on."""

    kind: Literal["active", "retired"]
    model: str
    tenant: str
    owner: str
    registered_at: int = Field(description="µs UTC.")
    version: int
    versions: dict[str, VersionState]
    successor: str | None = None
    reason: str | None = None
