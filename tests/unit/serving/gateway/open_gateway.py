"""A gateway's state without a log and without Ray: one model, keys, and a meter that keeps its facts."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from access.bearer import digest_of
from events.facts.accounts import KEY_DIMENSIONS
from events.log.record import Coordinate
from events.process.settings import Settings
from serving.gateway.state import GatewayState
from serving.inference import OutputTensor, Predicted
from serving.metering.meter import PendingFact, ProducerEpoch
from serving.replicas.batch_codec import pack_reply, unpack
from serving.replicas.model_replicas import ModelReplicas
from tests.support.lifecycle_facts import body as fact_of

SECRETS = {"acme": b"mm_secret", "globex": b"mm_other"}


class Echo:
    """A replica whose model answers with its input."""

    async def call(self, address: str, blob: bytes) -> bytes:
        predicted: list[Predicted] = []
        for run in unpack(blob):
            (shape,), (tensor,), at = run.shapes, run.tensors, 0
            for rows in run.rows:
                size = rows * 8
                predicted.append(Predicted((OutputTensor((rows, *shape[1:]), tensor[at : at + size]),), 5))
                at += size
        return pack_reply("r", predicted)


class Facts:
    """Takes the place of a `Meter`: keeps the usage facts."""

    log_unavailable, epoch = False, ProducerEpoch("g", "e", "log", "eu")

    def __init__(self) -> None:
        self.settled: list[tuple[str, int, str, int]] = []

    def record_settled(self, tenant: str, event_id: str, body: dict[str, Any]) -> PendingFact:
        self.settled.append((body["outcome"], body["status"], body["error_code"], body["bytes_out"]))
        return PendingFact(event_id, tenant, 1, b"", 0.0, asyncio.get_running_loop().create_future(), "", "")

    async def acknowledged(self, fact: PendingFact) -> Coordinate:
        return Coordinate("usage", 0, 0)


class OpenState(GatewayState):
    """A gateway's state with a key of each tenant and one model that is ready."""

    fresh = True  # type: ignore[assignment]

    def __init__(self, replicas: ModelReplicas | None = None) -> None:
        super().__init__(Settings(), replicas or Echo())
        for tenant, secret in SECRETS.items():
            key = {"tenant": tenant, "key_id": f"k-{tenant}", "key_sha256": digest_of(secret).hex(), "user": "u", "scopes": ["invoke"]}
            issued = key | dict.fromkeys(KEY_DIMENSIONS, "") | {"labels": {}, "expires_at": None}
            self.routes.apply("ApiKeyIssued", issued, Coordinate("", 0, 0))
        for position, name in enumerate(("ModelRegistered", "ModelVersionAdded", "VersionDeployed", "VersionReady"), 1):
            self.routes.apply(name, {**fact_of(name), "position": 3 if name == "VersionReady" else position}, Coordinate("", 0, 0))
        self.facts = Facts()
        self.meter = cast("Any", self.facts)

    def require_fresh_keys(self) -> None:
        pass
