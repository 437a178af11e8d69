"""A bill that goes on from a checkpoint is the bill that a reading from offset 0 gives, to the byte, whatever happened behind it (K20, K27)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from events.facts.fact import NO_HASH
from events.facts.meters import METERS
from projections.bills.checkpoints import files
from projections.bills.checkpoints.checkpoint import Checkpoint, Pins, UnreadBelow, digest_of_written_off
from projections.bills.checkpoints.files import CheckpointFiles
from projections.bills.decided_for_bills import LogIncomplete, RecordDecisions, usage_partition
from projections.bills.tenant_usage import TenantUsage
from projections.bills.usage_spool import Unread, UsageEntry, UsageSpool
from rating.bill import make_bill
from rating.book import BookVersion, Price, PriceBook
from rating.event_ids import EventIds
from rating.key_terms import KeyTerm
from rating.rules import SETTLED, VOIDED, ReachesBack, UsageRecord
from rating.statement import Cutoff, Statement, StatementBuilder

TENANT, HOUR, DAY = "t", 3_600_000_000, 24 * 3_600_000_000
START = 100 * DAY
BILLS, SEEDS = 5, 400
FIELDS = tuple(UsageRecord.__dataclass_fields__)
EPOCHS = ("a", "b", "late")


class Signed:
    """As an `EpochVerifier` whose signatures cost nothing."""

    def __init__(self, epoch: str) -> None:
        self.key_id = epoch

    def proves(self, proof: bytes, record_sha256: bytes) -> bool:
        return proof == proof_of(self.key_id, record_sha256)


def proof_of(epoch: str, digest: bytes) -> bytes:
    return b"\1\0\0" + sha256(epoch.encode() + digest).digest() * 2


@dataclass
class Known:
    """What the log says besides the usage itself, when a bill is made."""

    opened: set[str] = field(default_factory=lambda: {"a", "b"})
    terms: dict[str, KeyTerm] = field(default_factory=lambda: {"k": KeyTerm(0, None)})
    decisions: RecordDecisions = field(default_factory=RecordDecisions)
    versions: list[BookVersion] = field(default_factory=list[BookVersion])
    readable: set[int] = field(default_factory=set[int])
    """Offsets of records whose schema has come."""

    def verifier(self, epoch: str) -> Any:
        return Signed(epoch) if epoch in self.opened else None


def chance_days(chance: random.Random) -> int:
    return chance.randint(1, 12) * DAY


class History:
    """A tenant's records, of several epochs, with everything that goes wrong now and then."""

    def __init__(self, seed: int) -> None:
        self.chance, self.calm = random.Random(seed), seed % 3 == 0
        self.entries: list[UsageEntry] = []
        self.unread: dict[int, Unread] = {}
        """Offsets of records that nobody can read at first; they have their entries, too."""
        self.now, self.heads = START, dict[str, tuple[int, bytes]]()
        self.lost: list[UsageEntry] = []
        self.known = Known()
        self.price(START - DAY)

    def rarely(self, share: float) -> bool:
        return self.chance.random() < share * (0.1 if self.calm else 1)

    def price(self, effective: int) -> None:
        n = len(self.known.versions) + 1
        self.known.versions.append(BookVersion(n, effective, {("*", m): Price(self.chance.randint(0, 9), 7) for m in METERS[:2]}, n))

    def grow(self) -> None:
        for _ in range(self.chance.randint(3, 25)):
            self.now += self.chance.choice([0, 1, HOUR, 7 * HOUR, 2 * DAY if self.rarely(0.2) else 1])
            if self.rarely(0.02):
                self.now = max(START, self.now - chance_days(self.chance))  # a broker's clock
            self.one()

    def one(self) -> None:
        epoch = "late" if self.rarely(0.06) else self.chance.choice("ab")
        if self.entries and self.rarely(0.08):  # a copy, now and then of another record's proof
            copied = self.chance.choice(self.entries)
            self.put(copied, copied.proof if self.chance.random() < 0.8 else b"")
            return
        if self.lost and self.chance.random() < 0.3:
            self.put(self.lost.pop())
            return
        sequence, previous = self.heads.get(epoch, (0, NO_HASH))
        entry = self.entry(epoch, sequence + 1, previous)
        forged = self.entry(epoch, sequence + 1, previous)
        if self.rarely(0.1):  # a rival: unsigned, or signed as well
            self.put(forged, b"\1\0\0" + bytes(64) if self.chance.random() < 0.5 else forged.proof)
        self.heads[epoch] = sequence + 1, entry.record.sha256
        if self.rarely(0.06):
            self.lost.append(entry)
        else:
            self.put(entry, b"\1\0\0" + bytes(64) if self.rarely(0.05) else entry.proof)

    def entry(self, epoch: str, sequence: int, previous: bytes) -> UsageEntry:
        chance, ids = self.chance, [e.record.event_id for e in self.entries]
        event_id = chance.choice(ids) if ids and self.rarely(0.05) else chance.randbytes(8).hex()
        void = self.rarely(0.08)
        wanted = chance.choice(ids) if ids and chance.random() < 0.6 else event_id[:-1] + "0"
        if not void and self.rarely(0.04):  # what a void before or behind it names
            event_id = next((e.record.voided for e in self.entries if e.record.voided), event_id)
        late = chance.choice([0, HOUR, 6 * DAY, 8 * DAY, -HOUR, -200_000_000] if self.rarely(0.3) else [0])
        rated: dict[str, Any] = dict.fromkeys(FIELDS, "") | {
            "partition": usage_partition(TENANT),
            "fact": VOIDED if void else SETTLED,
            "event_id": event_id,
            "occurred_at": self.now - late,
            "epoch": epoch,
            "sequence": sequence,
            "outcome": "" if void else "failed" if self.rarely(0.1) else "succeeded",
            "shadow": self.rarely(0.03),
            "invocation_key": b"" if void or not self.rarely(0.5) else chance.choice([b"x", b"y", b"z"]),
            "provider": "" if void else "p",
            "model": "" if void else chance.choice("mn"),
            "quantities": () if void else tuple(chance.randint(0, 3) for _ in METERS),
            "voided": wanted if void else "",
        }
        rated["sha256"] = sha256(repr((sorted(rated.items()), previous, chance.random())).encode()).digest()
        key = chance.choice(["k", "k2", "k3"]) if self.rarely(0.15) else "k"
        proof, own = proof_of(epoch, rated["sha256"]), not self.rarely(0.03)
        rated |= {"offset": -1, "append_us": -1}
        return UsageEntry(tuple(rated[name] for name in FIELDS), previous, proof, own, "" if void else key, 0 if void else self.now - 1000)

    def put(self, entry: UsageEntry, proof: bytes | None = None) -> None:
        offset = len(self.entries)
        rated = dict(zip(FIELDS, entry.rated, strict=True)) | {"offset": offset, "append_us": self.now}
        placed = entry._replace(rated=tuple(rated[name] for name in FIELDS))
        self.entries.append(placed if proof is None else placed._replace(proof=proof))
        if self.rarely(0.02):
            self.unread[offset] = Unread(b"t" if self.chance.random() < 0.3 else b"u", placed.record.sha256, 9)

    def decide(self, position: int) -> None:
        """Between two bills: epochs open, keys end, people decide, prices and schemas come."""
        chance, known = self.chance, self.known
        if self.rarely(0.1):
            known.opened.add("late")
        if self.rarely(0.1):
            known.terms["k2"] = KeyTerm(START, START + chance.randint(0, 20) * DAY)
        if self.rarely(0.05):
            known.terms["k"] = KeyTerm(0, self.now - (3 * DAY if chance.random() < 0.3 else 0))
        if self.rarely(0.3):
            self.price(self.now - (2 * DAY if chance.random() < 0.3 else 0))
        for entry in chance.sample(self.entries, min(len(self.entries), 3)) if self.rarely(0.4) else ():
            known.decisions.counted.setdefault((entry.record.offset, entry.record.sha256), position)
        for offset, unread in self.unread.items():
            if self.rarely(0.2):
                known.readable.add(offset)
            elif unread.key == b"t" or self.rarely(0.3):
                known.decisions.written_off[offset] = frozenset({unread.sha256})

    def spool(self) -> UsageSpool:
        unread = {o: u for o, u in self.unread.items() if o not in self.known.readable}
        spool = UsageSpool(dict(self.known.decisions.written_off), unread)
        for offset, entry in enumerate(self.entries):
            if offset not in unread:
                spool.add(TENANT, entry)
        return spool

    def usage(self, spool: UsageSpool, after: Checkpoint | None = None) -> TenantUsage:
        opened: Any = self.known
        return TenantUsage(TENANT, spool, self.known.decisions, opened, self.known.terms, after)


def result(usage: TenantUsage, cuts: list[Cutoff], book: PriceBook) -> tuple[list[Statement], bytes, str]:
    """The statements, the bill between them, and what holds it back."""
    statements = usage.statements([(cutoff, book) for cutoff in cuts])
    before = statements[-2] if len(statements) > 1 else Statement()
    pins = ("tenant", "period", "number", "log_id", "until", "decided_position", "rating_version", "price_book", "currency", "cut_event_id")
    cut: dict[str, Any] = dict.fromkeys(pins, "") | {"cuts": [], "event_id": "", "previous_bill_sha256": b""}
    bill = make_bill(cut, statements[-1], before, frozenset(), usage.spool.excluded)
    try:
        usage.require_readable(cuts[-1].cuts[usage_partition(TENANT)])
    except LogIncomplete as e:
        return statements, bill.canonical(), str(e)
    return statements, bill.canonical(), ""


def book_at(known: Known, position: int) -> PriceBook:
    return PriceBook(v for v in known.versions if v.position <= position)


def test_a_checkpoint_gives_the_same_bytes_as_offset_0_in_four_hundred_random_histories(tmp_path: Path) -> None:
    kept, outcomes = CheckpointFiles(tmp_path), Counter[str]()
    for seed in range(SEEDS):
        history, cuts = History(seed), list[Cutoff]()
        for number in range(1, BILLS + 1):
            history.grow()
            history.decide(number * 10)
            below, spool = len(history.entries), history.spool()
            until = max(history.now - history.chance.choice([0, 0, HOUR, DAY]), cuts[-1].until if cuts else 0)
            now = Cutoff({usage_partition(TENANT): below}, until, decided_position=number * 10 + 5)
            asked, book = [*cuts[-1:], now], book_at(history.known, 99)
            usage = history.usage(spool)
            whole = result(usage, asked, book)
            outcomes[go_on(kept, history, spool, asked, book, whole, seed)] += number > 1
            bill = Cutoff(now.cuts, until, 1, frozenset(o for o in spool.excluded if o < below), now.decided_position)
            cuts.append(bill)
            made = usage.checkpoint(lambda c, n=number, b=below: pins(n, b, c))
            kept.discard(usage_partition(TENANT), TENANT)
            if made is not None and history.chance.random() < 0.9:
                kept.keep(usage_partition(TENANT), made)
    assert outcomes["went on"] > SEEDS, outcomes
    reasons = (
        "people decided|event_id of a record before|void names|waited for one|other instants|opened|another time|nothing proved|can be read"
    )
    assert all(any(reason in outcome for outcome in outcomes) for reason in reasons.split("|")), outcomes


def go_on(
    kept: CheckpointFiles, history: History, spool: UsageSpool, asked: list[Cutoff], book: PriceBook, whole: object, seed: int
) -> str:
    """Compares; what came of it."""
    after = kept.checkpoint(usage_partition(TENANT), TENANT)
    if after is None:
        return "none"
    try:
        found = result(history.usage(spool, after), asked, book)
    except ReachesBack as e:
        return str(e)
    assert found == whole, f"seed {seed}, behind {after.pins.offset}"
    return "went on"


def pins(number: int, below: int, cutoff: Cutoff) -> Pins:
    return Pins(TENANT, number, "log", below, cutoff.until, cutoff.decided_position, cutoff.rating_version, b"")


def test_a_key_that_was_billed_too_long_ago_to_be_remembered_reaches_back() -> None:
    """A broker's clock went back by more than a week."""
    history = History(0)
    record = replace(
        history.entry("a", 1, NO_HASH).record,
        fact=SETTLED,
        outcome="succeeded",
        shadow=False,
        invocation_key=b"x",
        quantities=(1,) * len(METERS),
    )

    def at(offset: int, instant: int) -> UsageRecord:
        return replace(record, offset=offset, event_id=str(offset), append_us=instant, occurred_at=instant)

    cutoff = Cutoff({record.partition: 10}, START + 99 * DAY)
    builder = StatementBuilder(cutoff, PriceBook(), frozenset())
    for offset, instant in enumerate((START, START + 20 * DAY)):
        builder.add(at(offset, instant))
    state = builder.state()
    assert state is not None and state.keys == {b"x": (START + 20 * DAY,)}, "the first is too old"
    later = StatementBuilder(cutoff, PriceBook(), frozenset(), state)
    later.add(at(2, START + 20 * DAY + 1))
    assert later.statement().counts.duplicate == 1
    with pytest.raises(ReachesBack, match="older than the keys"):
        later.add(at(3, START + HOUR))


# --- the files


def checkpoint() -> Checkpoint:
    history = History(3)
    history.grow()
    usage = history.usage(history.spool())
    usage.statements([(Cutoff({usage_partition(TENANT): len(history.entries)}, history.now), PriceBook())])
    made = usage.checkpoint(lambda c: pins(1, len(history.entries), c))
    assert made is not None and len(made.statement.ids) > 1
    return made


def test_a_checkpoint_is_read_as_it_was_written_and_any_changed_byte_makes_it_none(tmp_path: Path) -> None:
    kept, made = CheckpointFiles(tmp_path), checkpoint()
    kept.keep(0, made)
    read = kept.checkpoint(0, TENANT)
    assert read is not None
    assert (read.pins, read.verdicts, read.decided, read.unread_sha256) == (made.pins, made.verdicts, made.decided, made.unread_sha256)
    assert [list(run) for run in read.statement.ids.runs] == [list(run) for run in made.statement.ids.runs]
    assert kept.checkpoint(1, TENANT) is None and kept.checkpoint(0, "another") is None
    (path,) = (p for p in tmp_path.glob("0/*"))
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        if at < 51 or at >= 64:  # between stands nothing
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert kept.checkpoint(0, TENANT) is None, at
    for torn in (b"", data[:40], data[:-8]):
        path.write_bytes(torn)
        assert kept.checkpoint(0, TENANT) is None
    path.write_bytes(data)
    assert kept.checkpoint(0, TENANT) is not None
    path.rename(path.with_name(sha256(b"another").hexdigest()))
    assert kept.checkpoint(0, "another") is None, "a checkpoint of one tenant is no other's"
    kept.discard_all()
    assert not list(tmp_path.glob("0/*"))


def test_one_that_another_version_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CheckpointFiles(tmp_path)
    kept.keep(0, checkpoint())
    monkeypatch.setattr("projections.bills.checkpoints.checkpoint.MADE_BY", "another")
    assert kept.checkpoint(0, TENANT) is None


def test_without_space_nothing_is_kept_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SHARE_FREE_MIN", 2.0)
    kept = CheckpointFiles(tmp_path)
    kept.keep(0, checkpoint())
    assert kept.checkpoint(0, TENANT) is None
    folder = tmp_path / "file"
    folder.write_text("no folder")
    CheckpointFiles(folder).keep(0, checkpoint())


def test_what_nobody_could_read_is_read_again_when_a_schema_or_a_write_off_came(tmp_path: Path) -> None:
    kept, written_off = CheckpointFiles(tmp_path), {3: {b"a"}, 90: {b"b"}}
    kept.keep_unread(0, UnreadBelow(50, {3: Unread(b"t", b"a"), 7: Unread(None, b"c", 9)}, digest_of_written_off(written_off, 50)))
    read = kept.unread(0)
    assert read is not None and read.unread[7] == Unread(None, b"c", 9)
    schemas: Mapping[int, Any] = {1: None}
    assert read.holds(schemas, written_off) and read.holds(schemas, {**written_off, 91: {b"x"}})
    assert not read.holds({9: None}, written_off)
    assert not read.holds(schemas, {**written_off, 4: {b"x"}}) and not read.holds(schemas, {3: {b"a", b"z"}})


def test_event_ids_are_found_in_few_runs_however_they_came() -> None:
    chance, ids, added = random.Random(1), EventIds(), set[str]()
    for _ in range(200):
        new = {chance.randbytes(16).hex() for _ in range(chance.choice([0, 1, 50, 300]))}
        ids, added = ids.with_added(new), added | new
    assert len(ids) == len(added) and len(ids.runs) < 12
    assert all(event_id in ids for event_id in added)
    assert not any(chance.randbytes(16).hex() in ids for _ in range(10_000))
