"""What the producers' chains say of one tenant's records below a cut: for the bill that is computed from the log alone (K13)."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from events.log.record import Record
from events.producers.batch_proof import EPOCH_PROOF
from events.producers.opened_epochs import OpenedEpochs
from events.producers.producer_chain import ProducerChain, UsageClaim, Verdict
from rating.key_terms import KeyTerm, began_us
from rating.rules import SETTLED
from rating.statement import Place

SETTLED_AT_ONCE = 5_000
"""Records for which one signature of each chain is checked: bounds the memory of what is not judged yet."""


class UsageVerdicts:
    """For one cut: fed with the tenant's records below it in the order of the log, without what its bill excludes, then settled. Remembers only
    those that do not simply count."""

    def __init__(self, opened: OpenedEpochs, terms: Mapping[str, KeyTerm]) -> None:
        self._opened, self._terms = opened, terms
        self._chains: dict[str, ProducerChain | None] = {}
        self._held: set[int] = set()
        """Of an epoch that nobody opened, or with a key that was not the tenant's then."""
        self._others: dict[int, Verdict] = {}
        self._added = 0

    def add(self, record: Record, name: str, body: Mapping[str, Any]) -> None:
        epoch = body["epoch"]
        if epoch not in self._chains:
            verifier = self._opened.verifier(epoch)
            self._chains[epoch] = ProducerChain(verifier) if verifier else None
        chain = self._chains[epoch]
        if chain is None or record.key != body["tenant"].encode():
            self._held.add(record.offset)
            return
        digest = sha256(record.value or b"").digest()
        chain.add(UsageClaim(record.offset, body["sequence"], body["previous_sha256"], digest, record.headers.get(EPOCH_PROOF, b"")))
        if name == SETTLED and not self._is_own_key(record, body):
            self._held.add(record.offset)
        self._added += 1
        if self._added % SETTLED_AT_ONCE == 0:
            self.settle()

    def settle(self) -> None:
        for chain in self._chains.values():
            for offset, judged in (chain.settle() if chain else {}).items():
                if judged.verdict != "counts":
                    self._others[offset] = judged.verdict
                else:
                    self._others.pop(offset, None)

    @property
    def broken(self) -> bool:
        """Whether a record waits for one that is not there."""
        return "chain_broken" in self._others.values()

    def of(self, offset: int) -> Place:
        if offset in self._held:
            return "held"
        match self._others.get(offset):
            case None:
                return "whole"
            case "repeated":
                return "repeated"
            case _:
                return "held"

    def _is_own_key(self, record: Record, body: Mapping[str, Any]) -> bool:
        term = self._terms.get(body["key_id"])
        return term is not None and term.covers(began_us(body, record.timestamp * 1000))
