"""Which usage records of an epoch count: histories with gaps, copies, rivals and forgeries, against a plain definition."""

from __future__ import annotations

import itertools
import random
from hashlib import sha256

import pytest

from events.facts.fact import NO_HASH
from events.process.signing_keys import SigningKey
from events.producers.batch_proof import EpochVerifier, batch_proofs
from events.producers.producer_chain import Judged, ProducerChain, UsageClaim, Verdict

KEY, FORGER = SigningKey(bytes(range(32))), SigningKey(bytes(32))
LOG, EPOCH = "log", "epoch"


class Epoch:
    """Writes a chain; each record signed in a batch of its own unless a test says otherwise."""

    def __init__(self, key: SigningKey = KEY) -> None:
        self.key, self.sequence, self.head = key, 0, NO_HASH

    def claim(self, offset: int, text: str = "") -> UsageClaim:
        self.sequence += 1
        digest = sha256(f"{self.sequence} {text}".encode() + self.head).digest()
        claim = UsageClaim(offset, self.sequence, self.head, digest, batch_proofs(self.key, LOG, EPOCH, [digest])[0])
        self.head = digest
        return claim


def chain() -> ProducerChain:
    return ProducerChain(EpochVerifier(LOG, EPOCH, KEY.public))


def judged(claims: list[UsageClaim], settle_after: set[int] | None = None) -> dict[int, Verdict]:
    """By the last verdict of each; settled after these offsets and at the end."""
    return {offset: known.verdict for offset, known in known_by(claims, settle_after).items()}


def known_by(claims: list[UsageClaim], settle_after: set[int] | None = None) -> dict[int, Judged]:
    mine, known = chain(), dict[int, Judged]()
    for claim in claims:
        mine.add(claim)
        if settle_after is None or claim.offset in settle_after:
            known |= mine.settle()
    return known | mine.settle()


def test_a_whole_chain_counts_and_one_signature_is_checked_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    epoch, mine, checked = Epoch(), chain(), list[bytes]()
    proves = EpochVerifier.proves
    monkeypatch.setattr(EpochVerifier, "proves", lambda self, proof, digest: checked.append(digest) or proves(self, proof, digest))
    claims = [epoch.claim(offset) for offset in range(1000)]
    for claim in claims:
        mine.add(claim)
    assert mine.settle() == {offset: Judged("counts", offset) for offset in range(1000)}
    assert (mine.sequence, mine.sha256) == (1000, claims[-1].sha256)
    assert len(checked) == 1


def test_a_record_with_a_wrong_signature_or_none_is_held_and_the_true_one_counts_whichever_came_first() -> None:
    epoch = Epoch()
    one = epoch.claim(0)
    forged = sha256(b"forged").digest()
    rival = UsageClaim(1, 2, one.sha256, forged, batch_proofs(FORGER, LOG, EPOCH, [forged])[0])
    bare = UsageClaim(2, 2, one.sha256, forged, b"")
    two = epoch.claim(3)
    of_another = UsageClaim(4, 3, two.sha256, forged, one.proof)
    three = epoch.claim(5)
    for settle_after in (None, set[int](), {1}, {2, 4}):
        assert judged([one, rival, bare, two, of_another, three], settle_after) == {
            0: "counts",
            1: "not_signed",
            2: "not_signed",
            3: "counts",
            4: "not_signed",
            5: "counts",
        }


def test_what_follows_a_gap_waits_and_counts_once_it_is_filled() -> None:
    epoch = Epoch()
    one, two, three, four = (epoch.claim(offset) for offset in range(4))
    assert judged([one, three, four]) == {0: "counts", 2: "chain_broken", 3: "chain_broken"}
    late = two._replace(offset=9)
    assert judged([one, three, four, late]) == {0: "counts", 2: "counts", 3: "counts", 9: "counts"}
    assert known_by([one, three, four, late])[2] == Judged("counts", at=9)
    copy_of_waiting = three._replace(offset=8)
    assert judged([one, three, copy_of_waiting, four, late])[8] == "repeated"


def test_a_copy_and_a_second_signed_record_of_one_sequence_are_repeated() -> None:
    epoch = Epoch()
    one = epoch.claim(0)
    fork = Epoch()
    fork.sequence, fork.head = epoch.sequence, epoch.head
    two, other_two, after_other = epoch.claim(1), fork.claim(2, "other"), fork.claim(3)
    assert judged([one, one._replace(offset=7), two, other_two, after_other]) == {
        0: "counts",
        7: "repeated",
        1: "counts",
        2: "repeated",
        3: "chain_broken",
    }


def test_when_it_is_settled_changes_no_verdict_in_three_hundred_random_histories() -> None:
    chance = random.Random(13)
    for _ in range(300):
        epoch, claims = Epoch(), list[UsageClaim]()
        for _ in range(chance.randint(1, 12)):
            claim = epoch.claim(0)
            if chance.random() < 0.15:
                continue  # lost
            forged = chance.randbytes(32)
            rivals = [UsageClaim(0, claim.sequence, claim.previous_sha256, forged, batch_proofs(FORGER, LOG, EPOCH, [forged])[0])]
            claims += rivals * (chance.random() < 0.3) + [claim] * chance.choice([1, 1, 1, 2])
        if chance.random() < 0.5:
            i = chance.randrange(len(claims) + 1)
            claims = claims[i:] + claims[:i]
        placed = [claim._replace(offset=offset) for offset, claim in enumerate(claims)]
        once = judged(placed, set())
        assert known_by(placed) == known_by(placed, set()) == known_by(placed, {chance.randrange(20), chance.randrange(20)})
        counted = sorted((c for c in placed if once[c.offset] == "counts"), key=lambda c: c.sequence)
        assert [c.sequence for c in counted] == list(range(1, len(counted) + 1))
        assert all(later.previous_sha256 == earlier.sha256 for earlier, later in itertools.pairwise(counted))
