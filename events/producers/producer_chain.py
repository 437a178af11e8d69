"""The chain of one tenant's usage in one producer epoch: which records count, and why others are held (K13).

A record counts when it follows the one before it, by sequence and hash, and the epoch's key signed it or one behind it in the chain. Of two
records with one sequence the signed one counts, and of two signed ones the first. What follows no record that counts waits, and counts once
the gap is filled. Pure: the caller reads the log, decides when to settle, and remembers what is held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from events.facts.fact import NO_HASH
from events.producers.batch_proof import EpochVerifier, is_well_formed

Verdict = Literal["counts", "repeated", "not_signed", "chain_broken"]
"""`repeated`: its sequence is taken, by the same bytes (then it is a copy) or by others. Held as well, unless it is a copy."""


class Judged(NamedTuple):
    """`at` is the offset of the record by which it is known: its own, or that of the one that filled the gap before it."""

    verdict: Verdict
    at: int


class UsageClaim(NamedTuple):
    """What a record on `usage` says of its place, with the SHA-256 of its framed value and its header `epoch_proof`."""

    offset: int
    sequence: int
    previous_sha256: bytes
    sha256: bytes
    proof: bytes


class ProducerChain:
    """`sequence` and `sha256` are those of the last record that counts; a new chain starts at 0 and NO_HASH."""

    def __init__(self, verifier: EpochVerifier, sequence: int = 0, sha256: bytes = NO_HASH, waiting: Iterable[UsageClaim] = ()) -> None:
        """`waiting`: what was judged `chain_broken` when the chain stood here, in the order of the log."""
        self._verifier = verifier
        self.sequence, self.sha256 = sequence, sha256
        self._line: list[UsageClaim] = []
        """Each follows the one before it, the first what counts. Not looked at before it must be."""
        self._waiting: dict[bytes, list[UsageClaim]] = {}
        """previous_sha256 → signed claims that follow nothing that counts, in the order of the log."""
        for claim in waiting:
            self._waiting.setdefault(claim.previous_sha256, []).append(claim)
        self._judged: dict[int, Judged] = {}

    @property
    def key_id(self) -> str:
        """The key of the epoch."""
        return self._verifier.key_id

    @property
    def waiting(self) -> list[UsageClaim]:
        """As a new chain takes them, once everything is settled."""
        return sorted(claim for claims in self._waiting.values() for claim in claims)

    def add(self, claim: UsageClaim) -> None:
        """In the order of the log."""
        if not self._follows(claim):
            self._count_line()  # what it is told apart from
        if self._follows(claim):
            self._line.append(claim)
            if claim.sha256 in self._waiting:
                self._count_line()
        elif not self._verifier.proves(claim.proof, claim.sha256):
            self._judged[claim.offset] = Judged("not_signed", claim.offset)
        elif claim.sequence <= self.sequence:
            self._judged[claim.offset] = Judged("repeated", claim.offset)
        else:
            self._judged[claim.offset] = Judged("chain_broken", claim.offset)
            self._waiting.setdefault(claim.previous_sha256, []).append(claim)

    def settle(self) -> dict[int, Judged]:
        """By offset, of what was added since and of what that sets free; after `chain_broken` another may follow. When it is called changes
        no verdict. One signature is checked where nobody forges and nothing is missing."""
        self._count_line()
        judged, self._judged = self._judged, {}
        return judged

    def _follows(self, claim: UsageClaim) -> bool:
        sequence, head = (self._line[-1].sequence, self._line[-1].sha256) if self._line else (self.sequence, self.sha256)
        return claim.sequence == sequence + 1 and claim.previous_sha256 == head and is_well_formed(claim.proof)

    def _count_line(self) -> None:
        """Goes on to the last of the line that the epoch signed; nothing proves what stands behind it."""
        line, self._line = self._line, []
        signed = len(line)
        while signed and not self._verifier.proves(line[signed - 1].proof, line[signed - 1].sha256):
            signed -= 1
        self._judged.update((claim.offset, Judged("counts", claim.offset)) for claim in line[:signed])
        self._judged.update((claim.offset, Judged("not_signed", claim.offset)) for claim in line[signed:])
        if signed:
            self.sequence, self.sha256 = line[signed - 1].sequence, line[signed - 1].sha256
            self._count_waiting(line[signed - 1].offset)

    def _count_waiting(self, at: int) -> None:
        while (following := self._waiting.pop(self.sha256, None)) is not None:
            counts = next((claim for claim in following if claim.sequence == self.sequence + 1), None)
            if counts is None:
                return
            self._judged.update((claim.offset, Judged("repeated", at)) for claim in following)
            self._judged[counts.offset] = Judged("counts", at)
            self.sequence, self.sha256 = counts.sequence, counts.sha256
