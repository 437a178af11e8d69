"""Signs usage as gateways do: certified epochs, chains per tenant, a proof for each record."""

from __future__ import annotations

import uuid
from hashlib import sha256
from typing import Any

from events.facts.fact import NO_HASH
from events.process.clock import now_us
from events.process.settings import Settings
from events.process.signing_keys import SigningKey, signing_key
from events.producers.batch_proof import EPOCH_PROOF, batch_proofs
from events.producers.epoch_key import certify


class SignedUsage:
    """Any number of epochs, each with a key of its own; the market's key comes from the stack's data folder."""

    def __init__(self, settings: Settings, log_id: str) -> None:
        self._market_key, self._log_id = signing_key(settings, "market"), log_id
        self.opened: dict[str, SigningKey] = {}
        self._heads: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._epochs: dict[bytes, str] = {}

    def opening(self, epoch: str, producer: str) -> dict[str, Any]:
        """The body of the epoch's `ProducerOpened`."""
        key = self.opened.setdefault(epoch, SigningKey.new())
        certificate = certify(self._market_key, self._log_id, producer, epoch, key.public)
        return {
            "event_id": str(uuid.uuid4()),
            "occurred_at": now_us(),
            "producer": producer,
            "epoch": epoch,
            "log_id": self._log_id,
            "host": "h",
            "region": "local",
            "public_key": certificate.public_key,
            "certified_by": certificate.signed_by,
            "certificate": certificate.signature,
        }

    def next_place(self, epoch: str, tenant: str) -> tuple[int, bytes]:
        """Sequence and previous hash of the next record."""
        sequence, head = self._heads.get((epoch, tenant), (0, NO_HASH))
        return sequence + 1, head

    def follow(self, epoch: str, tenant: str, frame: bytes) -> bytes:
        """The chain goes on behind this frame. Returns it."""
        sequence, _ = self.next_place(epoch, tenant)
        digest = sha256(frame).digest()
        self._heads[epoch, tenant], self._epochs[digest] = (sequence, digest), epoch
        return frame

    def rewritten(self, tenant: str, frame: bytes, instead: bytes) -> bytes:
        """As if the epoch had written other bytes, last. Returns them."""
        epoch, digest = self._epochs[sha256(frame).digest()], sha256(instead).digest()
        self._heads[epoch, tenant], self._epochs[digest] = (self._heads[epoch, tenant][0], digest), epoch
        return instead

    def proof(self, frame: bytes | None, signed_by: str = "") -> dict[str, bytes]:
        """The header of a frame that an epoch made; none for others, unless an epoch is named that signs it all the same."""
        digest = sha256(frame or b"").digest()
        epoch = signed_by or self._epochs.get(digest, "")
        return {EPOCH_PROOF: batch_proofs(self.opened[epoch], self._log_id, epoch, [digest])[0]} if epoch else {}
