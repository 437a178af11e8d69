"""The chain of decided records: which of the records on a partition are the relay's, in the store's order (K4, K26).

Each decided record names its store, its position there and the hash of the record before it in the same partition; the hash of a record
covers its store, position, key and value and that of the record before it. The relay signs the last record of each batch. So one signature
proves every record before it, and a record counts when a signed one stands at or behind it. Of two records that claim one position, the
proven one counts. Pure: the caller reads, alarms, and decides how long an unproven record may wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Generic, NamedTuple, TypeVar

from events.facts.fact import INT64_MAX
from events.log.record import LogRecord
from events.log.signature import SIGNATURE, SIGNED_BY, chain_signature, is_chain_signed
from events.process.signing_keys import PublicKeys, SigningKey

STORE, POSITION, PREVIOUS_SHA256 = "store", "position", "previous_sha256"
STORE_OPENED = "StoreOpened"
FIRST = bytes(32)
"""`previous_sha256` of the first record of a partition."""
POSITION_MAX = INT64_MAX
"""What a store and a table can hold: a larger number in a foreign header must not reach an insert."""
STALLED_S_MAX = 30.0
"""A record that waits longer for its proof is not one that was overtaken: an operator must look."""
NOT_SENT = "not_sent"
"""The code of a dead letter: a record that claims a position, and that the relay did not send."""

R = TypeVar("R", bound=LogRecord)


class ChainPosition(NamedTuple):
    """The position in the chain that a record's headers claim. Positions grow, with gaps, across stores too: one number orders the log."""

    store: str
    position: int
    previous_sha256: bytes
    """32 bytes."""

    @property
    def headers(self) -> dict[str, bytes]:
        return {STORE: self.store.encode(), POSITION: b"%d" % self.position, PREVIOUS_SHA256: self.previous_sha256}

    def sha256(self, key: bytes | None, value: bytes | None) -> bytes:
        """The hash of the record with these headers: 32 bytes."""
        key, value = key or b"", value or b""
        head = b"%b%b %d %d %d " % (self.previous_sha256, self.store.encode(), self.position, len(key), len(value))
        return sha256(head + key + value).digest()

    def signed_headers(self, relay_key: SigningKey, topic: str, partition: int, record_sha256: bytes) -> dict[str, bytes]:
        return self.headers | chain_signature(relay_key, topic, partition, record_sha256)


class Claim(NamedTuple, Generic[R]):
    """A record with a chain position."""

    at: ChainPosition
    sha256: bytes
    signed_by: str
    """The key that it names; empty without a signature."""
    record: R


def claim_of(record: R, headers: Mapping[str, bytes]) -> Claim[R] | None:
    """None for a record without these headers, or with values that the relay never writes."""
    try:
        at = ChainPosition(headers[STORE].decode(), int(headers[POSITION]), headers[PREVIOUS_SHA256])
    except (KeyError, ValueError):
        return None
    if not 0 < at.position <= POSITION_MAX or len(at.previous_sha256) != len(FIRST):
        return None
    signed_by = headers.get(SIGNED_BY, b"").decode("ascii", "replace") if SIGNATURE in headers else ""
    return Claim(at, at.sha256(record.key, record.value), signed_by, record)


def is_proof(claim: Claim[R], relay_keys: PublicKeys) -> bool:
    """Whether the relay signed it. A tenth of a millisecond."""
    return claim.signed_by in relay_keys and is_chain_signed(claim.record, claim.sha256, relay_keys)


class Proven(NamedTuple, Generic[R]):
    """What became certain: each claim is in one of the lists."""

    records: list[Claim[R]]
    """The relay's, in the order of the chain."""
    copies: list[Claim[R]]
    """Of some of those: the relay sent them twice."""
    foreign: list[Claim[R]]
    """Whoever wrote them, it was not the relay."""


@dataclass(slots=True)
class Chain(Generic[R]):
    """How far one partition is proven, and the claims read since. A new log starts at ("", 0, FIRST)."""

    relay_keys: PublicKeys
    store: str = ""
    position: int = 0
    sha256: bytes = FIRST
    _line: list[Claim[R]] = field(default_factory=list[Claim[R]])
    """Claims each of which names the one before, from the proven end on: without a forger, all there are."""
    _others: list[Claim[R]] = field(default_factory=list[Claim[R]])
    _looked_at: int = 0
    """Claims of the line that were found to prove nothing. Those signed with a key that counts no more wait for the first of a newer key."""
    _changed: bool = False

    def add(self, claim: Claim[R]) -> bool:
        """False when its position is proven already: a copy, or a forgery that comes too late."""
        if claim.at.position <= self.position:
            return False
        head = self._line[-1].sha256 if self._line else self.sha256
        (self._line if claim.at.previous_sha256 == head else self._others).append(claim)
        self._changed = True
        return True

    @property
    def waiting(self) -> list[Claim[R]]:
        """Those that nothing proves yet."""
        return self._line + self._others

    def prove(self) -> Proven[R]:
        """Goes on to the last claim that the relay signed. One signature is checked where nobody forges; so call it for many records at once."""
        proven = Proven[R]([], [], [])
        if not self._changed:
            return proven
        while (path := self._signed_line(proven) or self._signed_path(proven)) is not None:
            last = path[-1]
            self.store, self.position, self.sha256 = last.at.store, last.at.position, last.sha256
            proven.records.extend(path)
            if self._others:
                ids, hashes = {id(claim) for claim in path}, {claim.sha256 for claim in path}
                passed = [c for c in self.waiting if c.at.position <= self.position and id(c) not in ids]
                proven.copies.extend(c for c in passed if c.sha256 in hashes)
                proven.foreign.extend(c for c in passed if c.sha256 not in hashes)
            self._arrange([c for c in self.waiting if c.at.position > self.position])
        self._changed = False
        return proven

    def set_aside_older(self, at_ms: float) -> list[Claim[R]]:
        """Gives up the waiting claims that were appended before: the caller knows that the relay has sent nothing older that is not proven."""
        foreign = [c for c in self.waiting if c.record.timestamp < at_ms] if self._line or self._others else []
        if foreign:
            self._arrange([c for c in self.waiting if c.record.timestamp >= at_ms])
        return sorted(foreign, key=lambda c: c.record.offset)

    def _signed_line(self, proven: Proven[R]) -> list[Claim[R]] | None:
        for i in range(len(self._line) - 1, self._looked_at - 1, -1):
            claim = self._line[i]
            if claim.signed_by not in self.relay_keys:
                continue
            if is_proof(claim, self.relay_keys):
                return self._line[: i + 1]
            proven.foreign.append(claim)  # the relay writes no wrong signature
            self._others += self._line[i + 1 :]
            del self._line[i:]
        self._looked_at = len(self._line)
        return None

    def _signed_path(self, proven: Proven[R]) -> list[Claim[R]] | None:
        """The longest way from the proven end to a signed claim, where another record claimed the position of one on it."""
        by_sha256 = {claim.sha256: claim for claim in self.waiting} if self._others else {}
        signed = sorted((c for c in self._others if c.signed_by in self.relay_keys), key=lambda c: c.at.position, reverse=True)
        for claim in signed:
            path = self._path_to(claim, by_sha256)
            if path is None:
                continue
            if is_proof(claim, self.relay_keys):
                return path
            proven.foreign.append(claim)
            self._others = [c for c in self._others if c is not claim]
        return None

    def _path_to(self, claim: Claim[R], by_sha256: Mapping[bytes, Claim[R]]) -> list[Claim[R]] | None:
        path, before = [claim], claim
        while before.at.previous_sha256 != self.sha256:
            predecessor = by_sha256.get(before.at.previous_sha256)
            if predecessor is None or predecessor.at.position >= before.at.position:
                return None
            before = predecessor
            path.append(before)
        return path[::-1]

    def _arrange(self, claims: Iterable[Claim[R]]) -> None:
        """Lines up what follows the proven end."""
        after: dict[bytes, Claim[R]] = {}
        others: list[Claim[R]] = []
        for claim in claims:
            if after.setdefault(claim.at.previous_sha256, claim) is not claim:
                others.append(claim)
        self._line, self._looked_at, head = [], 0, self.sha256
        while (claim := after.pop(head, None)) is not None:
            self._line.append(claim)
            head = claim.sha256
        self._others = others + list(after.values())
