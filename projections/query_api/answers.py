"""The shapes of the query API's answers, for its OpenAPI document. Instants are µs UTC, money integer micro-units."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class Version(Answer):
    status: str = Field(description="draft | pending_review | approved")
    artifact: str
    reviews: dict[str, Any]
    deployment: dict[str, Any] | None = Field(description="status loading | ready | failed | undeployed, replicas, spec, error")


class Model(Answer):
    model: str
    tenant: str
    domain: str
    team: str
    name: str
    scenario: str
    task: str
    description: str
    tags: list[str]
    versions: dict[str, Version]
    live: str = Field(description="The version that is to take the calls; empty when none.")
    candidate: str = Field(description="The version being rolled out; empty when none.")
    serving: str = Field(description="The version that takes the calls now, but for the candidate's share; empty when none is ready.")
    loading: list[str] = Field(description="Versions that were asked for and not seen ready yet.")
    weights: dict[str, int] = Field(description="Version → percent of the calls that it takes now.")
    status: str = Field(description="Of the live version: not_deployed | loading | ready | failed | retired")
    position: int
    changed_at: int


class CatalogPage(Answer):
    models: list[Model]
    next: str = Field(description="Pass as `after`; empty at the end.")
    as_of: int | None


class ModelHistory(Answer):
    model: str
    facts: list[dict[str, Any]]


class UsagePage(Answer):
    rows: list[dict[str, Any]] = Field(
        description="The dimensions asked for, executions, succeeded, voided, shadows, refused, every meter of the executions that bills charge, latency."
    )
    truncated: bool
    group_by: list[str]
    view: str


class HeldUsage(Answer):
    record: str = Field(description="usage/partition/offset")
    state: str = Field(description="held | counted | dismissed")
    tenant: str
    code: str = Field(description="epoch_unknown | wrong_key | not_signed | chain_broken | sequence_taken | key_unknown")
    epoch: str
    sequence: int
    sha256: str = Field(description="Of the record's value, hex.")
    appended_us: int


class HeldUsagePage(Answer):
    held: list[HeldUsage]
    next: str = Field(description="Pass as `after`; empty at the end.")


class Line(Answer):
    model: str
    model_version: str
    provider: str
    meter: str
    book_version: int
    amount_per_micros: int
    per_units: int
    held: bool = Field(description="No price is known: shown, not charged.")
    quantity: int
    amount_micros: int


class BillHead(Answer):
    status: str = Field(description="issued | running")
    tenant: str
    period: str
    number: int
    currency: str
    total_micros: int
    digest: str = Field(description="SHA-256 of the canonical bill, hex; empty while it runs.")
    facts: dict[str, int]
    producers_open: int
    records_written_off: int = Field(description="Records below the cut that nobody can read and two people wrote off: billed to nobody.")


class BillWithLines(BillHead):
    lines: list[Line]


class BillPage(Answer):
    bills: list[BillHead]


class Bill(Answer):
    tenant: str
    period: str
    bills: list[BillWithLines]
    total_micros: int
    lines_total: int = Field(description="Of all bills of the period; an answer has at most 20 000 of them.")
    next_lines_from: int | None = Field(description="Set while there are more: ask again with ?lines_from=… for the next ones.")


class DeadLetterPage(Answer):
    dead_letters: list[dict[str, Any]] = Field(description="record, state (open, requested, written_off, redriven), code, reason, sha256.")
    next: str = Field(description="Pass as `after`; empty at the end.")


class EpochPage(Answer):
    epochs: list[dict[str, Any]] = Field(description="producer, epoch, status (open, closed, written_off), host, instants in µs UTC.")


class Health(Answer):
    status: str
    lag: int | None
    detail: str
    """Why it is not ready; empty when it is."""
    age_s: float | None


class Caller(Answer):
    tenant: str
    user: str
    key_id: str
    scopes: list[str]
