"""What the producers' chains say of one tenant's records below a cut: for the bill that is computed from the log alone (K13)."""

from __future__ import annotations

from collections.abc import Mapping

from events.producers.opened_epochs import OpenedEpochs
from events.producers.producer_chain import ProducerChain, Verdict
from projections.bills.usage_spool import UsageEntry
from rating.key_terms import KeyTerm
from rating.rules import SETTLED, UsageRecord
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

    def add(self, entry: UsageEntry, record: UsageRecord) -> None:
        """`record`: that of the entry."""
        if record.epoch not in self._chains:
            verifier = self._opened.verifier(record.epoch)
            self._chains[record.epoch] = ProducerChain(verifier) if verifier else None
        chain = self._chains[record.epoch]
        if chain is None or not entry.is_own:
            self._held.add(record.offset)
            return
        chain.add(entry.claim(record))
        if record.fact == SETTLED and not self._is_own_key(entry):
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

    def _is_own_key(self, entry: UsageEntry) -> bool:
        term = self._terms.get(entry.key_id)
        return term is not None and term.covers(entry.began_us)
