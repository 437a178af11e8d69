"""Verifies usage: follows the producers' chains along the log and notes in `usage_held_rows` what no bill may count (K13).

It goes as far as the table of usage is dense, and keeps nothing that the tables do not say: where it stands is `usage_verified`, and a chain
goes on from the last row of its epoch and tenant that counts. So any number of billers may verify; they write the same rows.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from events.facts.fact import NO_HASH
from events.facts.topics import TOPICS
from events.log.client import Reader
from events.log.record import Record
from events.producers.batch_proof import EPOCH_PROOF
from events.producers.opened_epochs import OpenedEpochs
from events.producers.producer_chain import Judged, ProducerChain, UsageClaim
from events.schema.codec import Undecodable
from projections.ingest.clickhouse import ClickHouse
from projections.usage.held import HeldCode
from projections.usage.tenant_keys import NAMED_MAX, TenantKeys, parts
from rating.rules import SETTLED

logger = logging.getLogger(__name__)
RECORDS_MAX = 20_000
"""Records of a partition verified at once: about half a second."""
CHAINS_MAX = 200_000
"""Chains kept, about 1 KB each; others are read from the table when their next record comes."""

Body = Mapping[str, Any]


T = TypeVar("T")
Place = tuple[int, int]
"""Partition and offset."""
Row = dict[str, Any]
"""Of `usage_held_rows`."""
Identity = tuple[int, str, str, int, str]
"""Partition, epoch, tenant, sequence and hash: what copies have in common."""
_NOT_IN_CHAIN = """SELECT kafka_offset FROM usage_held_rows FINAL
    WHERE kafka_partition = {partition:Int32} AND freed_at < 0 AND code != 'key_unknown'"""


class ChainName(NamedTuple):
    partition: int
    epoch: str
    tenant: str


class _Fact(NamedTuple):
    record: Record
    name: str
    body: Body
    sha256: bytes

    @property
    def chain(self) -> ChainName:
        return ChainName(self.record.partition, self.body["epoch"], self.body["tenant"])


class UsageVerifier:
    """`advance` is called by one thread."""

    def __init__(self, clickhouse: ClickHouse, reader: Reader, opened: OpenedEpochs) -> None:
        self._clickhouse, self._reader, self._opened = clickhouse, reader, opened
        self._codec = opened.codec
        self._keys = TenantKeys(clickhouse, reader, opened.codec)
        self._verified: dict[int, int] = {}
        self._producers: dict[int, int] = {}
        """Partition of `producers` → offset to read on from."""
        self._stored_epochs: dict[int, set[str]] = {}
        """Epochs whose chains may go on from rows of the table."""
        self._chains: dict[ChainName, ProducerChain] = {}
        self._waiting: dict[Place, Row] = {}
        """The row of a record that waits for the one before it."""
        self._unreadable: set[Place] = set()
        """What nobody could read so far."""

    def verified(self, partition: int) -> int:
        """Every record below this offset is verified."""
        if partition not in self._verified:
            sql = "SELECT max(kafka_offset) AS at FROM usage_verified WHERE kafka_partition = {partition:Int32}"
            self._verified[partition] = int(self._clickhouse.value(sql, {"partition": partition}))
            self._restore(partition, self._verified[partition])
        return self._verified[partition]

    def advance(self, dense_ends: Mapping[int, int]) -> bool:
        """Verifies what the table has below these ends, at most RECORDS_MAX of each partition; False when there is more."""
        for partition, end in dense_ends.items():
            if end < self._verified.get(partition, 0):  # an older copy of the tables was restored: what was noted since may be gone, too
                self.forget(partition)
        starts = {p: self.verified(p) for p in dense_ends}
        ends = {p: min(end, starts[p] + RECORDS_MAX) for p, end in dense_ends.items() if end > starts[p]}
        if not ends and not self._readable_again():
            return True
        self._read_producers()  # their records of these epochs are older than the usage
        facts, rows = self._facts(starts, ends)
        self._load_chains({fact.chain for fact in facts})
        rows += self._judged(facts)
        if rows:
            self._clickhouse.insert_rows("usage_held_rows", rows)
            logger.warning("%d records of usage are held or were freed, the first is %s", len(rows), rows[0])
        self._clickhouse.insert_rows("usage_verified", [{"kafka_partition": p, "kafka_offset": end} for p, end in ends.items()])
        self._verified |= ends
        return all(ends.get(p, 0) >= end or starts[p] >= end for p, end in dense_ends.items())

    def held(self) -> str | None:
        """How much usage is held that nobody has decided on, in words; None where there is none."""
        (row,) = self._clickhouse.rows(
            """SELECT count() AS n, uniqExact(tenant) AS tenants, groupUniqArray(code) AS codes,
                argMin(format('usage/{}/{} of {}', kafka_partition, kafka_offset, tenant), appended) AS first
            FROM usage_held"""
        )
        if not row["n"]:
            return None
        return f"{row['n']} records of usage are held and not billed ({', '.join(sorted(row['codes']))}), of {row['tenants']} tenants: {row['first']} first"

    # --- reading

    def _facts(self, starts: Mapping[int, int], ends: Mapping[int, int]) -> tuple[list[_Fact], list[Row]]:
        """What can be read, first that which could not be before; and rows of what cannot be."""
        tombstones = self._tombstones(starts, ends)
        again = (self._fact(self._reader.record_at("usage", *place)) for place in self._readable_again())
        facts, rows = [fact for fact in again if fact is not None], list[Row]()
        for record in self._reader.read("usage", starts, _only(ends)):
            place = record.partition, record.offset
            fact = None if place in tombstones else self._fact(record)
            if fact is not None:
                facts.append(fact)
                continue
            self._unreadable.add(place)
            rows.append(_unreadable_row(record))
        return facts, rows

    def _fact(self, record: Record) -> _Fact | None:
        """None where the schema is not known, as of a record that nobody can read."""
        try:
            name, body = self._codec.decode(record.value)
        except Undecodable:
            return None
        return _Fact(record, name, body, sha256(record.value or b"").digest())

    def _tombstones(self, starts: Mapping[int, int], ends: Mapping[int, int]) -> set[Place]:
        found = set[Place]()
        for partition, end in ends.items():
            rows = self._clickhouse.rows(
                """SELECT toInt64(kafka_offset) AS at FROM usage_unreadable
                WHERE kafka_partition = {partition:Int32} AND kafka_offset >= {start:Int64} AND kafka_offset < {end:Int64}""",
                {"partition": partition, "start": starts[partition], "end": end},
            )
            found |= {(partition, int(row["at"])) for row in rows}
        return found

    def _readable_again(self) -> list[Place]:
        """Records whose dead letter was read again since: the table has them now."""
        if not self._unreadable:
            return []
        rows = self._clickhouse.rows(
            """SELECT kafka_partition AS partition, toInt64(kafka_offset) AS at FROM usage_rows
            WHERE (kafka_partition, kafka_offset) IN (
                SELECT kafka_partition, toUInt64(kafka_offset) FROM usage_held_rows FINAL WHERE code = 'unreadable' AND freed_at < 0)
            ORDER BY kafka_partition, kafka_offset"""
        )
        return [(int(row["partition"]), int(row["at"])) for row in rows]

    def _read_producers(self) -> None:
        records = list(self._reader.read("producers", self._producers))
        self._opened.add(records)
        for record in records:
            self._producers[record.partition] = max(self._producers.get(record.partition, 0), record.offset + 1)

    # --- judging

    def _judged(self, facts: Sequence[_Fact]) -> list[dict[str, Any]]:
        """The rows to write: of what is held, and of what is held no more."""
        by_place, rows = {(f.record.partition, f.record.offset): f for f in facts}, dict[Place, Row]()
        foreign = self._keys.foreign({place: (f.body, f.record.timestamp * 1000) for place, f in by_place.items() if f.name == SETTLED})
        touched = dict[ChainName, ProducerChain]()
        for place, fact in by_place.items():
            chain = self._chains.get(fact.chain)
            if chain is None or fact.record.key != fact.body["tenant"].encode():
                rows[place] = _row(fact, "wrong_key" if chain else "epoch_unknown", place not in foreign)
                continue
            touched[fact.chain] = chain
            proof = fact.record.headers.get(EPOCH_PROOF, b"")
            chain.add(UsageClaim(fact.record.offset, fact.body["sequence"], fact.body["previous_sha256"], fact.sha256, proof))
        judged = {(name.partition, at): known for name, chain in touched.items() for at, known in chain.settle().items()}
        copies = self._copies(judged, by_place)
        for place, known in judged.items():
            row = self._waiting.pop(place, None) or _row(by_place[place], _code(known), place not in foreign)
            if known.verdict == "counts" or place in copies:
                if not row["own_key"]:
                    rows[place] = row | {"code": "key_unknown"}
                elif known.at != place[1] or place in self._unreadable:
                    rows[place] = row | {"freed_at": known.at}
                continue
            rows[place] = row | {"code": _code(known)}
            if known.verdict == "chain_broken":
                self._waiting[place] = rows[place]
        self._unreadable -= by_place.keys()
        return list(rows.values())

    def _copies(self, judged: Mapping[Place, Judged], by_place: Mapping[Place, _Fact]) -> set[Place]:
        """Of the repeated ones those with the bytes that count at their sequence. Others are second records of one sequence."""

        def identity(place: Place) -> Identity:
            row = self._waiting.get(place) or _row(by_place[place], "sequence_taken", True)
            return row["kafka_partition"], row["epoch"], row["tenant"], row["sequence"], row["sha256"]

        repeated = {place: identity(place) for place, known in judged.items() if known.verdict == "repeated"}
        if not repeated:
            return set()
        counting = {identity(place) for place, known in judged.items() if known.verdict == "counts"}
        counting |= self._counting_before(set(repeated.values()) - counting)
        return {place for place, which in repeated.items() if which in counting}

    def _counting_before(self, wanted: set[Identity]) -> set[Identity]:
        """Those that the table has in a record that counts."""
        found = set[Identity]()
        for partition in {which[0] for which in wanted}:
            for some in parts(sorted({which[4] for which in wanted if which[0] == partition})):
                found |= {
                    (partition, str(r["epoch"]), str(r["tenant"]), int(r["sequence"]), str(r["hash"]))
                    for r in self._clickhouse.rows(
                        f"""SELECT DISTINCT epoch, tenant, toInt64(sequence) AS sequence, lower(hex(sha256)) AS hash FROM usage_rows
                        WHERE kafka_partition = {{partition:Int32}} AND kafka_offset < {{below:Int64}} AND lower(hex(sha256)) IN {{hashes:Array(String)}}
                        AND kafka_offset NOT IN ({_NOT_IN_CHAIN})""",
                        {"partition": partition, "below": self._verified[partition], "hashes": some},
                    )
                }
        return found

    # --- chains

    def _load_chains(self, names: set[ChainName]) -> None:
        """Those that are not at hand, from the table where it may have records of them."""
        missing = {name: verifier for name in names - self._chains.keys() if (verifier := self._opened.verifier(name.epoch)) is not None}
        if len(self._chains) + len(missing) > CHAINS_MAX:
            self._forget_chains(names)
        stored = [name for name in missing if name.epoch in self._stored_epochs[name.partition]]
        heads = self._stored_heads(stored) if stored else {}
        waiting = defaultdict[ChainName, list[UsageClaim]](list)
        for (partition, offset), row in self._waiting.items() if stored else ():
            claim = UsageClaim(offset, row["sequence"], bytes.fromhex(row["previous_sha256"]), bytes.fromhex(row["sha256"]), b"")
            waiting[ChainName(partition, row["epoch"], row["tenant"])].append(claim)
        for name, verifier in missing.items():
            self._chains[name] = ProducerChain(verifier, *heads.get(name, (0, NO_HASH)), waiting=waiting.get(name, ()))

    def _forget_chains(self, needed: set[ChainName]) -> None:
        for name in self._chains.keys() - needed:
            self._stored_epochs[name.partition].add(name.epoch)
            del self._chains[name]

    def forget(self, partition: int) -> None:
        """All that is known of a partition; it is read from the tables again."""
        self._verified.pop(partition, None)
        self._chains = {name: chain for name, chain in self._chains.items() if name.partition != partition}
        self._waiting = {place: row for place, row in self._waiting.items() if place[0] != partition}
        self._unreadable = {place for place in self._unreadable if place[0] != partition}

    def _stored_heads(self, names: Sequence[ChainName]) -> dict[ChainName, tuple[int, bytes]]:
        heads = dict[ChainName, tuple[int, bytes]]()
        for partition in {name.partition for name in names}:
            mine = [name for name in names if name.partition == partition]
            for i in range(0, len(mine), NAMED_MAX):
                some = mine[i : i + NAMED_MAX]
                rows = self._clickhouse.rows(
                    f"""SELECT epoch, tenant, toInt64(max(sequence)) AS newest, lower(hex(argMax(sha256, sequence))) AS head FROM usage_rows
                    WHERE kafka_partition = {{partition:Int32}} AND kafka_offset < {{below:Int64}}
                    AND epoch IN {{epochs:Array(String)}} AND tenant IN {{tenants:Array(String)}} AND kafka_offset NOT IN ({_NOT_IN_CHAIN})
                    GROUP BY epoch, tenant""",
                    {
                        "partition": partition,
                        "below": self._verified[partition],
                        "epochs": sorted({name.epoch for name in some}),
                        "tenants": sorted({name.tenant for name in some}),
                    },
                )
                heads |= {ChainName(partition, r["epoch"], r["tenant"]): (int(r["newest"]), bytes.fromhex(r["head"])) for r in rows}
        return heads

    def _restore(self, partition: int, below: int) -> None:
        """What a process before this one noted of a partition."""
        sql = "SELECT DISTINCT epoch FROM usage_rows WHERE kafka_partition = {partition:Int32} AND kafka_offset < {below:Int64}"
        rows = self._clickhouse.rows(sql, {"partition": partition, "below": below}) if below else []
        self._stored_epochs[partition] = {str(row["epoch"]) for row in rows}
        sql = "SELECT * FROM usage_held_rows FINAL WHERE kafka_partition = {partition:Int32} AND freed_at < 0 ORDER BY kafka_offset"
        for row in self._clickhouse.rows(sql, {"partition": partition}):
            place = partition, int(row["kafka_offset"])
            if row["code"] == "chain_broken":
                self._waiting[place] = row
            elif row["code"] == "unreadable":
                self._unreadable.add(place)


def _row(fact: _Fact, code: HeldCode, own_key: bool) -> Row:
    body, record = fact.body, fact.record
    return {
        "kafka_partition": record.partition,
        "kafka_offset": record.offset,
        "kafka_time_us": record.timestamp * 1000,
        "tenant": body["tenant"],
        "epoch": body["epoch"],
        "sequence": body["sequence"],
        "previous_sha256": body["previous_sha256"].hex(),
        "sha256": fact.sha256.hex(),
        "code": code,
        "own_key": own_key,
        "freed_at": -1,
    }


def _unreadable_row(record: Record) -> Row:
    """Its key names the tenant that it was written for, if anybody."""
    value = record.value or b""
    return {
        "kafka_partition": record.partition,
        "kafka_offset": record.offset,
        "kafka_time_us": record.timestamp * 1000,
        "tenant": (record.key or b"").decode(errors="replace"),
        "sha256": sha256(value).hexdigest(),
        "code": "unreadable",
    }


def _code(known: Judged) -> HeldCode:
    match known.verdict:
        case "not_signed":
            return "not_signed"
        case "repeated":
            return "sequence_taken"
        case "counts" | "chain_broken":
            return "chain_broken"


def _only(ends: Mapping[int, int]) -> dict[int, int]:
    return {p: ends.get(p, 0) for p in range(TOPICS["usage"].partitions)}
