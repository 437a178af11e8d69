"""What the producers' chains say of one tenant's records below a cut: for the bill that is computed from the log alone (K13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from events.producers.opened_epochs import OpenedEpochs
from events.producers.producer_chain import ProducerChain, UsageClaim, Verdict
from projections.bills.usage_spool import UsageEntry
from rating.key_terms import KeyTerm
from rating.rules import SETTLED, ReachesBack, UsageRecord
from rating.statement import Place

SETTLED_AT_ONCE = 5_000
"""Records for which one signature of each chain is checked: bounds the memory of what is not judged yet."""
EXCEPTIONS_MAX = 10_000
"""Records that do not simply count, of a state; a tenant who has more has none."""


class ChainState(NamedTuple):
    """As a `ProducerChain` goes on from; `key_id`: the key of the epoch."""

    key_id: str
    sequence: int
    sha256: bytes
    waiting: tuple[UsageClaim, ...]


class Other(NamedTuple):
    """A record that does not simply count. `verdict`: of its chain; None where it is in none, or counts there and is held all the same."""

    sha256: bytes
    verdict: Verdict | None
    held: bool
    """Of an epoch that nobody opened, under another key than its tenant, or with a key that was not the tenant's then."""


@dataclass(frozen=True, slots=True)
class VerdictState:
    """What the verdicts of later records depend on, and what these verdicts depended on: if that changes, they must be found again."""

    added: int = 0
    chains: Mapping[str, ChainState] = field(default_factory=dict[str, ChainState])
    unopened: frozenset[str] = frozenset()
    others: Mapping[int, Other] = field(default_factory=dict[int, Other])
    own_keys: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Key → when the first and the last call with it began; both were its tenant's then."""
    foreign_keys: tuple[tuple[str, int], ...] = ()


NOTHING_JUDGED = VerdictState()


class UsageVerdicts:
    """For one cut: fed with the tenant's records below it in the order of the log, without what its bill excludes, then settled. Remembers only
    those that do not simply count. With `after` it is fed with the records behind that state; raises ReachesBack where a verdict before
    would be another one by now."""

    def __init__(self, opened: OpenedEpochs, terms: Mapping[str, KeyTerm], after: VerdictState = NOTHING_JUDGED) -> None:
        self._opened, self._terms = opened, terms
        self._chains: dict[str, ProducerChain | None] = dict.fromkeys(after.unopened)
        self._held = {offset for offset, other in after.others.items() if other.held}
        self._others: dict[int, Verdict] = {offset: other.verdict for offset, other in after.others.items() if other.verdict}
        self._added = after.added
        self._hashes = {offset: other.sha256 for offset, other in after.others.items()}
        self._unsettled: dict[int, bytes] = {}
        self._own_keys, self._foreign_keys = dict(after.own_keys), set(after.foreign_keys)
        self._before = frozenset(after.others)
        self._not_signed = {other.sha256 for other in after.others.values() if other.verdict == "not_signed"}
        self._go_on(after)

    def _go_on(self, after: VerdictState) -> None:
        for epoch, state in after.chains.items():
            verifier = self._opened.verifier(epoch)
            if verifier is None or verifier.key_id != state.key_id:
                raise ReachesBack(f"epoch {epoch} has another key")
            self._chains[epoch] = ProducerChain(verifier, state.sequence, state.sha256, state.waiting)
        if any(self._opened.verifier(epoch) is not None for epoch in after.unopened):
            raise ReachesBack("an epoch is opened that was not")
        own = all(self._is_own_key(key_id, began) for key_id, between in after.own_keys.items() for began in between)
        if not own or any(self._is_own_key(*call) for call in after.foreign_keys):
            raise ReachesBack("a key was the tenant's at another time")

    def add(self, entry: UsageEntry, record: UsageRecord) -> None:
        """`record`: that of the entry."""
        if record.epoch not in self._chains:
            verifier = self._opened.verifier(record.epoch)
            self._chains[record.epoch] = ProducerChain(verifier) if verifier else None
        chain = self._chains[record.epoch]
        if chain is None or not entry.is_own:
            self._hold(record)
            return
        if entry.previous_sha256 in self._not_signed:  # whoever settles later may find that this one proves it
            raise ReachesBack(f"{record.partition}/{record.offset} follows a record that nothing proved before")
        self._unsettled[record.offset] = record.sha256
        chain.add(entry.claim(record))
        if record.fact == SETTLED and not self._note_key(entry):
            self._hold(record)
        self._added += 1
        if self._added % SETTLED_AT_ONCE == 0:
            self.settle()

    def settle(self) -> None:
        for chain in self._chains.values():
            for offset, judged in (chain.settle() if chain else {}).items():
                if offset in self._before:
                    raise ReachesBack(f"a record at {offset} waited for one that has come")
                if judged.verdict != "counts":
                    self._others[offset] = judged.verdict
                    self._hashes[offset] = self._unsettled.get(offset) or self._hashes[offset]
                else:
                    self._others.pop(offset, None)
        self._unsettled.clear()

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

    def state(self) -> VerdictState | None:
        """Once it is settled: to go on from behind this cut. None where it would hold more than the bounds allow."""
        others = {o: Other(self._hashes[o], self._others.get(o), o in self._held) for o in sorted(self._held | self._others.keys())}
        if len(others) > EXCEPTIONS_MAX or len(self._foreign_keys) > EXCEPTIONS_MAX:
            return None
        chains = {
            epoch: ChainState(chain.key_id, chain.sequence, chain.sha256, tuple(claim._replace(proof=b"") for claim in chain.waiting))
            for epoch, chain in self._chains.items()
            if chain
        }
        unopened = frozenset(epoch for epoch, chain in self._chains.items() if chain is None)
        return VerdictState(self._added, chains, unopened, others, dict(self._own_keys), tuple(sorted(self._foreign_keys)))

    def _hold(self, record: UsageRecord) -> None:
        self._held.add(record.offset)
        self._hashes[record.offset] = record.sha256

    def _note_key(self, entry: UsageEntry) -> bool:
        key_id, began = entry.key_id, entry.began_us
        if not self._is_own_key(key_id, began):
            if len(self._foreign_keys) <= EXCEPTIONS_MAX:
                self._foreign_keys.add((key_id, began))
            return False
        first, last = self._own_keys.get(key_id, (began, began))
        self._own_keys[key_id] = min(first, began), max(last, began)
        return True

    def _is_own_key(self, key_id: str, began: int) -> bool:
        term = self._terms.get(key_id)
        return term is not None and term.covers(began)
