"""One signature for a batch: each proof proves its record and no other, and the tree is that of RFC 6962."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from events.process.signing_keys import SigningKey
from events.producers.batch_proof import BATCH_MAX, EpochVerifier, batch_proofs

KEY, OTHER_KEY = SigningKey(bytes(32)), SigningKey(bytes(range(32)))
LOG, EPOCH = "log", "epoch"
SIZES = [*range(1, 41), BATCH_MAX]


def hashes_of(size: int) -> list[bytes]:
    return [hashlib.sha256(b"record %d of %d" % (i, size)).digest() for i in range(size)]


def proofs_of(hashes: Sequence[bytes]) -> list[bytes]:
    return batch_proofs(KEY, LOG, EPOCH, hashes)


def verifier(log_id: str = LOG, epoch: str = EPOCH, key: SigningKey = KEY) -> EpochVerifier:
    """A fresh one, which remembers no batch."""
    return EpochVerifier(log_id, epoch, key.public)


# --- RFC 6962, section 2.1, by its own recursion: MTH and PATH over D[n], split at the largest power of two below n


def tree_hash(entries: Sequence[bytes]) -> bytes:
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = split(len(entries))
    return hashlib.sha256(b"\x01" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


def audit_path(m: int, entries: Sequence[bytes]) -> list[tuple[bytes, bool]]:
    """From the leaf up, each hash with whether it stands left."""
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*audit_path(m, entries[:k]), (tree_hash(entries[k:]), False)]
    return [*audit_path(m - k, entries[k:]), (tree_hash(entries[:k]), True)]


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def expected(m: int, entries: Sequence[bytes]) -> bytes:
    """A proof but for its signature, as the page of the module says."""
    path = audit_path(m, entries)
    sides = sum(1 << i for i, (_, left) in enumerate(path) if left)
    return b"\x01" + sides.to_bytes(2, "big") + b"".join(h for h, _ in path)


@pytest.mark.parametrize("size", SIZES)
def test_path_and_root_are_those_of_rfc_6962(size: int) -> None:
    hashes = hashes_of(size)
    proofs = proofs_of(hashes)
    chosen = range(size) if size <= 40 else (0, 1, 2, 511, 512, 700, size - 1)
    assert [proofs[m][:-64] for m in chosen] == [expected(m, hashes) for m in chosen]
    (signature,) = {proof[-64:] for proof in proofs}
    message = b"modelmarket usage 1\x00" + b"3:log" + b"5:epoch" + tree_hash(hashes)
    Ed25519PublicKey.from_public_bytes(KEY.public).verify(signature, message)


# --- what is proved


@pytest.mark.parametrize("size", SIZES)
def test_every_proof_proves_its_record_and_no_other(size: int) -> None:
    hashes = hashes_of(size)
    proofs, known = proofs_of(hashes), verifier()
    assert all(known.proves(proof, sha256) for proof, sha256 in zip(proofs, hashes, strict=True))
    step = 1 if size <= 40 else 97
    found = {(i, j) for i in range(0, size, step) for j in range(0, size, step) if known.proves(proofs[i], hashes[j])}
    assert found == {(i, i) for i in range(0, size, step)}


def test_a_record_is_proved_without_the_others_of_its_batch() -> None:
    hashes = hashes_of(1000)
    assert verifier().proves(proofs_of(hashes)[617], hashes[617])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_a_flipped_bit_anywhere_is_refused(size: int) -> None:
    """Also by one who has just seen the true batch. A bit of the sides past the end of the path says nothing, and is refused as well."""
    hashes = hashes_of(size)
    proof, sha256 = proofs_of(hashes)[-1], hashes[-1]
    known = verifier()
    assert known.proves(proof, sha256)
    believed = [bit for bit in range(len(proof) * 8) if known.proves(flipped(proof, bit), sha256)]
    assert believed == []
    assert not any(known.proves(proof, flipped(sha256, bit)) for bit in range(256))


def flipped(of: bytes, bit: int) -> bytes:
    wrong = bytearray(of)
    wrong[bit // 8] ^= 1 << bit % 8
    return bytes(wrong)


@pytest.mark.parametrize("wrong", [{"log_id": "gol"}, {"epoch": "hcope"}, {"log_id": "loge", "epoch": "poch"}, {"key": OTHER_KEY}])
def test_the_proof_of_another_log_epoch_or_key_is_refused(wrong: dict[str, str]) -> None:
    (sha256,) = hashes_of(1)
    (proof,) = proofs_of([sha256])
    assert verifier().proves(proof, sha256)
    assert not verifier(**wrong).proves(proof, sha256)  # pyright: ignore[reportArgumentType]


def test_a_node_of_the_tree_is_not_taken_for_a_record() -> None:
    """The path of a pair, shortened by one hash, does not prove the pair."""
    hashes = hashes_of(4)
    proof = proofs_of(hashes)[0]
    sides = (int.from_bytes(proof[1:3], "big") >> 1).to_bytes(2, "big")
    assert not verifier().proves(b"\x01" + sides + proof[35:], tree_hash(hashes[:2]))


@given(st.binary(max_size=500))
def test_any_bytes_are_refused_without_an_error(proof: bytes) -> None:
    known = verifier()
    assert not known.proves(proof, bytes(32))
    assert not known.proves(b"\x01" + proof, bytes(32))


def test_a_longer_path_than_a_batch_has_is_refused() -> None:
    """Though it leads to a root that the epoch signed: who checks has a bound."""
    for size, proved in ((BATCH_MAX, True), (BATCH_MAX * 2, False)):
        hashes = hashes_of(size)
        assert verifier().proves(proofs_of(hashes)[0], hashes[0]) == proved


def test_the_batch_checked_last_makes_no_other_signature_good() -> None:
    """A batch that has the same root and a wrong signature is refused after the right one, and the right one after it is not."""
    hashes = hashes_of(2)
    right, known = proofs_of(hashes), verifier()
    wrong = [proof[:-64] + bytes(64) for proof in right]
    asked = [(right, 0), (wrong, 1), (right, 1), (wrong, 0), (right, 0)]
    assert [known.proves(proofs[i], hashes[i]) for proofs, i in asked] == [True, False, True, False, True]
