"""What was used: one settled fact per execution, with every billable quantity on it. Topic `usage`, key = tenant.

Whether an execution is billed, and which of several with one `invocation_key`, is a dated rule in `rating/`, not a field here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from events.facts.accounts import KeyDimensions
from events.facts.fact import NO_HASH, Count, Duration, Fact, KeyId, ModelId, ModelVersion, Sha256, TenantId, UserId
from events.facts.meters import MeterReadings

Outcome = Literal["succeeded", "client_error", "failed", "timed_out", "aborted"]


class UsageFact(Fact):
    """A fact on `usage`. `sequence` counts from 1 per (epoch, tenant) and `previous_sha256` is the hash of the framed record
    before it in that chain, so that a bill can show that none is missing (K13)."""

    tenant: TenantId
    epoch: str
    sequence: Annotated[int, Field(ge=1)]
    previous_sha256: Sha256 = NO_HASH


class InvocationSettled(MeterReadings, KeyDimensions, UsageFact):
    """One execution ended. Acknowledged by the log before the caller has the answer (K12).

    `invocation_key` is SHA-256 over tenant, Idempotency-Key, operation and body; empty without a key (K11). The dimensions
    are those of the API key when the call came in. `slice_id`, `price_version` and `reserved_micros` freeze the budget
    cost at reservation (K22); empty or 0 where no budget was asked.
    """

    invocation_key: bytes = b""
    key_id: KeyId
    user: UserId
    region: str
    labels: dict[str, str] = {}
    provider: TenantId
    model: ModelId
    model_version: ModelVersion
    deployment: str
    replica: str = ""
    route: str = ""
    operation: str
    attempt: Count = 1
    outcome: Outcome
    status: Count
    error_code: str = ""
    streamed: bool = False
    shadow: bool = False
    cached: bool = False
    queue_us: Duration = 0
    ttft_us: Duration = 0
    latency_us: Duration = 0
    batch_size: Count = 1
    slice_id: str = ""
    price_version: Count = 0
    reserved_micros: Count = 0


class InvocationOpened(UsageFact):
    """A streamed execution is about to deliver its first byte; it owes a settled fact (K12)."""

    invocation_key: bytes = b""
    key_id: KeyId
    user: UserId
    provider: TenantId
    model: ModelId
    model_version: ModelVersion
    operation: str
    input_tokens: Count = 0
    output_tokens_max: Count = 0
    slice_id: str = ""
    price_version: Count = 0
    reserved_micros: Count = 0


class InvocationAbandoned(UsageFact):
    """The producer of an opened execution died before it settled; `opened` is that fact's event_id. A later settled fact supersedes it."""

    opened: str
    model: ModelId
    model_version: ModelVersion
    reason: str


class InvocationVoided(UsageFact):
    """The answer of the settled fact `voided` never reached its caller, who was told 503: it is not billed."""

    voided: str
    model: ModelId
    model_version: ModelVersion
    reason: str


class InvocationRefused(UsageFact):
    """`count` calls were refused with this code within one second. Never billed. Tenant `-` when no key was recognised."""

    key_id: KeyId
    user: UserId
    region: str
    model: ModelId
    operation: str
    status: Count
    error_code: str
    count: Count
