"""A tenant's usage on the log up to the cut of an issued bill, as the next bill goes on from it (K20, K27).

It is made from the log alone, and only a cache of it: without one a bill is computed from offset 0. Where later facts reach back behind it,
whoever goes on from it notices (`ReachesBack`) and does the same.
"""

from __future__ import annotations

import marshal
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from events.facts.bills import BILL_COUNTERS
from events.facts.meters import METERS
from events.producers import batch_proof, opened_epochs, producer_chain
from events.producers.producer_chain import UsageClaim
from events.schema import codec
from projections.bills import usage_spool, usage_verdicts
from projections.bills.usage_spool import Unread
from projections.bills.usage_verdicts import ChainState, Other, VerdictState
from projections.usage import validator
from rating import book, event_ids, key_terms, rules, statement
from rating.event_ids import ID_BYTES, EventIds, Run
from rating.statement import Bucket, Carried, Cutoff, StatementState

_SOURCES = (
    batch_proof,
    opened_epochs,
    producer_chain,
    codec,
    usage_spool,
    usage_verdicts,
    validator,
    book,
    event_ids,
    key_terms,
    rules,
    statement,
)
_LENGTH_BYTES = 8
"""Of the length of what stands before the ids; its end is a multiple of ID_BYTES."""


@dataclass(frozen=True, slots=True)
class Pins:
    """Which bill it was made with. The next cut names that bill by its digest, so a checkpoint of anything else is never used."""

    tenant: str
    number: int
    log_id: str
    offset: int
    """Of the cut, in the tenant's partition."""
    until: int
    decided_position: int
    rating_version: int
    bill_sha256: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`decided`: offsets of records that count since people decided so; `unread_sha256`: `digest_of_unread` below its cut."""

    pins: Pins
    verdicts: VerdictState
    statement: StatementState
    decided: frozenset[int]
    unread_sha256: bytes

    def goes_on_to(self, cutoff: Cutoff, partition: int) -> bool:
        """Whether a statement at this cut-off knows all that it knows."""
        pins = self.pins
        return (
            pins.rating_version == cutoff.rating_version
            and pins.offset <= cutoff.cuts.get(partition, 0)
            and pins.until <= cutoff.until
            and pins.decided_position <= cutoff.decided_position
        )


def digest_of_unread(unread: Iterable[int], below: int) -> bytes:
    """Of the offsets of what nobody can read: another digest means that a record below came or went."""
    return sha256(array("Q", sorted(offset for offset in unread if offset < below))).digest()


def _made_by() -> str:
    """Names all that decides what a checkpoint holds: one of another version of any of it is not read."""
    digest = sha256(repr((sys.version, sys.byteorder, METERS, BILL_COUNTERS)).encode())
    for path in (*sorted(str(module.__file__) for module in _SOURCES), __file__):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


MADE_BY = _made_by()


def encoded(checkpoint: Checkpoint) -> list[bytes | memoryview]:
    """As one file: the length of its head, the head, and the runs of event_ids."""
    v, s = checkpoint.verdicts, checkpoint.statement
    pins = tuple(getattr(checkpoint.pins, name) for name in Pins.__slots__)
    chains = {epoch: (c.key_id, c.sequence, c.sha256, [tuple(w) for w in c.waiting]) for epoch, c in v.chains.items()}
    verdicts = (v.added, chains, v.unopened, {o: tuple(other) for o, other in v.others.items()}, dict(v.own_keys), v.foreign_keys)
    scalars = (s.until, s.bounds, s.newest_claimed, s.newest_append, s.keys_from)
    sums = {tuple(bucket): sums for bucket, sums in s.usage.items()}
    parts = (dict(s.counts), sums, dict(s.keys), dict(s.epochs), s.voided, [tuple(c) for c in s.carried], [len(run) for run in s.ids.runs])
    head = marshal.dumps((MADE_BY, pins, verdicts, scalars, parts, checkpoint.decided, checkpoint.unread_sha256))
    head += bytes(-len(head) % ID_BYTES)
    runs = [memoryview(array("Q", run) if not isinstance(run, array | memoryview) else run).cast("B") for run in s.ids.runs]
    return [len(head).to_bytes(_LENGTH_BYTES, sys.byteorder), head, *runs]


def decoded(data: memoryview) -> Checkpoint | None:
    """None for one that another version made. `data` is what was encoded; whoever kept it has checked that."""
    at = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], sys.byteorder)
    made_by, *rest = marshal.loads(data[_LENGTH_BYTES:at])
    if made_by != MADE_BY:
        return None
    pins, verdicts, scalars, parts, decided, unread_sha256 = rest
    counts, sums, keys, epochs, voided, carried, lengths = parts
    until, bounds, newest_claimed, newest_append, keys_from = scalars
    usage = {Bucket(*bucket): of for bucket, of in sums.items()}
    state = StatementState(
        until, counts, usage, bounds, newest_claimed, newest_append, keys_from, keys, epochs, voided,
        tuple(Carried(*c) for c in carried), EventIds(_runs(data[at:].cast("Q"), lengths)),
    )  # fmt: skip
    return Checkpoint(Pins(*pins), _verdicts(verdicts), state, decided, unread_sha256)


def _verdicts(parts: Sequence[Any]) -> VerdictState:
    added, chains, unopened, others, own_keys, foreign_keys = parts
    read = {
        e: ChainState(key, sequence, sha, tuple(UsageClaim(*w) for w in waiting)) for e, (key, sequence, sha, waiting) in chains.items()
    }
    return VerdictState(added, read, unopened, {o: Other(*other) for o, other in others.items()}, own_keys, foreign_keys)


def _runs(ids: memoryview, lengths: Sequence[int]) -> list[Run]:
    runs, at = list[Run](), 0
    for length in lengths:
        runs.append(ids[at : at + length])
        at += length
    return runs


@dataclass(frozen=True, slots=True)
class UnreadBelow:
    """What nobody could read of one partition below an offset, whoever's it is."""

    end: int
    unread: Mapping[int, Unread]
    written_off_sha256: bytes
    """`digest_of_written_off` below that offset."""

    def encoded(self) -> list[bytes | memoryview]:
        return [marshal.dumps((MADE_BY, self.end, {o: tuple(u) for o, u in self.unread.items()}, self.written_off_sha256))]

    @classmethod
    def decoded(cls, data: memoryview) -> UnreadBelow | None:
        """As `decoded`."""
        made_by, end, unread, written_off_sha256 = marshal.loads(data)
        return cls(end, {o: Unread(*u) for o, u in unread.items()}, written_off_sha256) if made_by == MADE_BY else None

    def holds(self, schemas: Mapping[int, Any], written_off: usage_spool.WrittenOffHashes) -> bool:
        """Whether a reading would find the same today: no schema of theirs has come, and nobody wrote off anything more."""
        known = any(record.schema_id in schemas for record in self.unread.values())
        return not known and digest_of_written_off(written_off, self.end) == self.written_off_sha256


def digest_of_written_off(written_off: usage_spool.WrittenOffHashes, below: int) -> bytes:
    digest = sha256()
    for offset in sorted(o for o in written_off if o < below):
        digest.update(b"%d" % offset + b"".join(sorted(written_off[offset])))
    return digest.digest()
