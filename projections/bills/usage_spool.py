"""One partition of `usage`, read from the log once for the bills of many tenants: what they need of each record, by tenant, in a file.

Memory is bounded by the records that wait to be written; the file is a temporary one of this process and has no name.
"""

from __future__ import annotations

import marshal
import tempfile
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, fields
from hashlib import sha256
from operator import attrgetter
from typing import IO, Any, NamedTuple

from events.facts.meters import METERS
from events.facts.topics import TOPICS
from events.log.client import Reader
from events.log.record import Record
from events.producers.batch_proof import EPOCH_PROOF
from events.producers.producer_chain import UsageClaim
from events.schema.codec import Codec, Undecodable, frame_schema_id
from projections.usage.validator import SUBJECTS, why_unreadable
from rating.key_terms import began_us
from rating.rules import SETTLED, VOIDED, UsageRecord

BUFFERED_MAX = 20_000
"""Records that wait to be written, about 20 MB."""
WrittenOffHashes = Mapping[int, Set[bytes]]
"""Of one partition: offset → hashes of the bytes that were written off there."""
Body = Mapping[str, Any]
_RATED = attrgetter(*(f.name for f in fields(UsageRecord)))
_OFFSET = [f.name for f in fields(UsageRecord)].index("offset")


class UsageEntry(NamedTuple):
    """A tenant's record: what rating takes of it, and what its producer's chain and its key say of it."""

    rated: tuple[Any, ...]
    """The fields of `UsageRecord`."""
    previous_sha256: bytes
    proof: bytes
    is_own: bool
    """Its Kafka key is the tenant that it names."""
    key_id: str
    began_us: int
    """When a settled call came in."""

    @property
    def record(self) -> UsageRecord:
        return UsageRecord(*self.rated)

    def claim(self, record: UsageRecord) -> UsageClaim:
        return UsageClaim(record.offset, record.sequence, self.previous_sha256, record.sha256, self.proof)


class Unread(NamedTuple):
    """A record that nobody can read, or none that is usage. `schema_id`: of its frame where the log has no such schema, else -1."""

    key: bytes | None
    sha256: bytes
    schema_id: int = -1


class Wanted(NamedTuple):
    """The records of a tenant from one offset up to another, which is left out."""

    start: int
    end: int


@dataclass(slots=True)
class UsageSpool:
    """What was read of one partition."""

    decided: WrittenOffHashes = field(default_factory=dict[int, Set[bytes]])
    """What is written off."""
    unread: dict[int, Unread] = field(default_factory=dict[int, Unread])
    """By offset, also of records before those that were read."""
    written_off: set[int] = field(default_factory=set[int])
    """Of those that were read: offsets of records whose very bytes are written off, whether or not they can be read by now."""
    records: int = 0
    """How many were read, of all tenants."""
    _file: IO[bytes] | None = None
    _chunks: dict[str, list[tuple[int, int]]] = field(default_factory=dict[str, list[tuple[int, int]]])
    """Tenant → where its records are in the file: start and length."""
    _buffered: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict[str, list[tuple[Any, ...]]])
    _buffered_n: int = 0

    @property
    def unreadable(self) -> dict[int, bytes | None]:
        """Offset → key of what nobody can read and nobody wrote off (K9)."""
        return {offset: record.key for offset, record in self.unread.items() if record.sha256 not in self.decided.get(offset, ())}

    @property
    def excluded(self) -> set[int]:
        """What nobody can read and two people wrote off: it is billed to nobody."""
        return {offset for offset, record in self.unread.items() if record.sha256 in self.decided.get(offset, ())}

    def add(self, tenant: str, entry: UsageEntry) -> None:
        """In the order of the log."""
        self._buffered.setdefault(tenant, []).append(tuple(entry))
        self._buffered_n += 1
        if self._buffered_n >= BUFFERED_MAX:
            self._write()

    def of(self, tenant: str, start: int = 0) -> Iterator[UsageEntry]:
        """A tenant's records from an offset on, in the order of the log. May be asked again, while nothing is added."""
        entries = self._of(tenant)
        return (entry for entry in entries if entry.rated[_OFFSET] >= start) if start else entries

    def _of(self, tenant: str) -> Iterator[UsageEntry]:
        for start, length in self._chunks.get(tenant, ()):
            assert self._file is not None
            self._file.seek(start)
            yield from map(UsageEntry._make, marshal.loads(self._file.read(length)))  # our own file
        yield from map(UsageEntry._make, self._buffered.get(tenant, ()))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="modelmarket-usage-")  # noqa: SIM115 - `close` does
        start = self._file.seek(0, 2)
        for tenant, entries in self._buffered.items():
            length = self._file.write(marshal.dumps(entries))
            self._chunks.setdefault(tenant, []).append((start, length))
            start += length
        self._buffered, self._buffered_n = {}, 0


def read_usage(
    reader: Reader,
    codec: Codec,
    partition: int,
    wanted: Mapping[str, Wanted],
    written_off: WrittenOffHashes,
    before: Mapping[int, Unread] | None = None,
    start: int = 0,
) -> UsageSpool:
    """One pass over a partition, from `start` to the last end that is wanted. `before`: what nobody could read below `start`. The caller closes
    what it gets. Raises OSError where the folder for temporary files has no space."""
    spool = UsageSpool(written_off, dict(before or {}))
    try:
        end = max((w.end for w in wanted.values()), default=0)
        ends = {p: end if p == partition else 0 for p in range(TOPICS["usage"].partitions)}
        for record in reader.read("usage", {partition: start}, ends):
            spool.records += 1
            _take(spool, record, codec, wanted)
    except BaseException:
        spool.close()
        raise
    return spool


def _take(spool: UsageSpool, record: Record, codec: Codec, wanted: Mapping[str, Wanted]) -> None:
    digest = sha256(record.value or b"").digest()
    if digest in spool.decided.get(record.offset, ()):
        spool.written_off.add(record.offset)
        # These very bytes are written off. What can be read is counted, written off or not.
        if why_unreadable(codec.schemas, record.value) is not None:
            spool.unread[record.offset] = _unread(record, digest, codec)
            return
    try:
        name, body = _usage_fact(codec, record)
    except Undecodable:
        spool.unread[record.offset] = _unread(record, digest, codec)
        return
    tenant = str(body["tenant"])
    if (mine := wanted.get(tenant)) is not None and mine.start <= record.offset < mine.end:
        spool.add(tenant, usage_entry(record, name, body, digest))


def _unread(record: Record, digest: bytes, codec: Codec) -> Unread:
    try:
        schema_id = frame_schema_id(record.value)
    except Undecodable:
        schema_id = -1
    return Unread(record.key, digest, -1 if schema_id in codec.schemas.by_id else schema_id)


def _usage_fact(codec: Codec, record: Record) -> tuple[str, Body]:
    """What a record says, if the table takes it, too. One under its tenant's key that the table refuses holds that tenant's bill back before
    anything is read here, so only under another key is it looked at as closely. Raises Undecodable."""
    schema = codec.schemas.by_id.get(frame_schema_id(record.value))
    if schema is not None and not schema.subject.startswith(SUBJECTS):
        raise Undecodable("wrong_subject", f"{schema.name} is no usage fact")
    name, body = codec.decode(record.value)
    if record.key != body["tenant"].encode() and (refused := why_unreadable(codec.schemas, record.value)) is not None:
        raise refused
    return name, body


def usage_entry(record: Record, name: str, body: Body, digest: bytes) -> UsageEntry:
    """Of a record on `usage`; `digest`: the SHA-256 of its framed value."""
    settled = name == SETTLED
    rated = UsageRecord(
        partition=record.partition,
        offset=record.offset,
        append_us=record.timestamp * 1000,
        sha256=digest,
        fact=name,
        event_id=body["event_id"],
        occurred_at=body["occurred_at"],
        epoch=body["epoch"],
        sequence=body["sequence"],
        outcome=body["outcome"] if settled else "",
        shadow=body["shadow"] if settled else False,
        invocation_key=body["invocation_key"] if settled else b"",
        provider=body["provider"] if settled else "",
        model=body["model"] if settled else "",
        model_version=body["model_version"] if settled else "",
        quantities=tuple(body[m] for m in METERS) if settled else (),
        voided=body["voided"] if name == VOIDED else "",
    )
    return UsageEntry(
        _RATED(rated),
        body["previous_sha256"],
        record.headers.get(EPOCH_PROOF, b""),
        record.key == body["tenant"].encode(),
        body["key_id"] if settled else "",
        began_us(body, record.timestamp * 1000) if settled else 0,
    )
