"""One signature for a batch of records, and for each record the path that leads to it (K13).

The records of a batch are the leaves of a Merkle tree (RFC 6962, section 2.1); the epoch's key signs the root. A record's header `epoch_proof`
holds its path and the signature, so each record is proved alone: whoever has it needs no other record of the batch. The tree is over the
SHA-256 of each framed record. A proof is: the version, 1; 2 bytes, big-endian, bit i set where the i-th hash of the path stands left of
what was computed so far; the path from the leaf up, 32 bytes each; the signature of the root, 64 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from events.process.signing_keys import PublicKeys, SigningKey, key_id_of

EPOCH_PROOF = "epoch_proof"
"""The header."""
BATCH_MAX = 1 << 10
"""Records in one batch: ten hashes of a path are 320 bytes."""
_VERSION, _SIDES_BYTES, _HASH_BYTES, _SIGNATURE_BYTES = b"\1", 2, 32, 64
_PATH_AT = len(_VERSION) + _SIDES_BYTES
_PATH_MAX = 10


def batch_proofs(epoch_key: SigningKey, log_id: str, epoch: str, hashes: Sequence[bytes]) -> list[bytes]:
    """The proof of each record of a batch, given their SHA-256: at least one, at most BATCH_MAX."""
    levels = [[_leaf(h) for h in hashes]]
    while len(below := levels[-1]) > 1:
        paired = [_node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        levels.append(paired + below[len(paired) * 2 :])  # an odd last one goes up as it is, as in RFC 6962
    signature = epoch_key.sign(_message(log_id, epoch, levels[-1][0]))
    return [_proof(levels, index, signature) for index in range(len(hashes))]


def _proof(levels: Sequence[Sequence[bytes]], index: int, signature: bytes) -> bytes:
    path, sides = list[bytes](), 0
    for level in levels[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            sides |= (index & 1) << len(path)
            path.append(level[sibling])
        index //= 2
    return b"".join((_VERSION, sides.to_bytes(_SIDES_BYTES, "big"), *path, signature))


class EpochVerifier:
    """Checks the records of one epoch against its public key (32 bytes). Raises ValueError for what is no such key."""

    def __init__(self, log_id: str, epoch: str, public_key: bytes) -> None:
        self._log_id, self._epoch = log_id, epoch
        self._keys, self.key_id = PublicKeys([public_key]), key_id_of(public_key)
        self._proven = b"", b""
        """Root and signature of the batch that was checked last: its records follow each other."""

    def proves(self, proof: bytes, record_sha256: bytes) -> bool:
        """Whether the epoch signed the record with this hash. A tenth of a millisecond for the first record of a batch."""
        if not is_well_formed(proof):
            return False
        path = len(proof) - _PATH_AT - _SIGNATURE_BYTES
        sides, signature, root = int.from_bytes(proof[1:_PATH_AT], "big"), proof[-_SIGNATURE_BYTES:], _leaf(record_sha256)
        if sides >> path // _HASH_BYTES:  # a bit without a hash: one record has one proof
            return False
        for i in range(path // _HASH_BYTES):
            beside = proof[_PATH_AT + i * _HASH_BYTES : _PATH_AT + (i + 1) * _HASH_BYTES]
            root = _node(beside, root) if sides >> i & 1 else _node(root, beside)
        if self._proven == (root, signature):
            return True
        if not self._keys.verify(self.key_id, _message(self._log_id, self._epoch, root), signature):
            return False
        self._proven = root, signature
        return True


def is_well_formed(proof: bytes) -> bool:
    path = len(proof) - _PATH_AT - _SIGNATURE_BYTES
    return 0 <= path <= _PATH_MAX * _HASH_BYTES and path % _HASH_BYTES == 0 and proof.startswith(_VERSION)


def _leaf(record_sha256: bytes) -> bytes:
    return sha256(b"\0" + record_sha256).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def _message(log_id: str, epoch: str, root: bytes) -> bytes:
    texts = [text.encode() for text in (log_id, epoch)]
    return b"modelmarket usage 1\0" + b"".join(b"%d:%s" % (len(text), text) for text in texts) + root
