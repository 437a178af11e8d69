"""The key of a producer epoch, and the certificate that says whose it is (K13).

Each epoch makes a key pair of its own in memory. The market's signer, the one process that holds the market's key, signs the public half
for one log, producer and epoch; `ProducerOpened` carries both. With the epoch's key every batch of usage is signed (`batch_proof`).
"""

from __future__ import annotations

from dataclasses import dataclass

from events.process.signing_keys import PublicKeys, SigningKey

PUBLIC_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class EpochCertificate:
    """The signature of the market's signer (64 bytes) with the key `signed_by` over log, producer, epoch and public key (32 bytes)."""

    public_key: bytes
    signed_by: str
    signature: bytes


def certify(market_key: SigningKey, log_id: str, producer: str, epoch: str, public_key: bytes) -> EpochCertificate:
    """What the market's signer does. Raises ValueError for a public key that is not 32 bytes."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"a public key has {PUBLIC_KEY_BYTES} bytes, this one {len(public_key)}")
    signature = market_key.sign(_message(log_id, producer, epoch, public_key))
    return EpochCertificate(public_key, market_key.key_id, signature)


def is_certified(certificate: EpochCertificate, log_id: str, producer: str, epoch: str, market_keys: PublicKeys) -> bool:
    """Whether the market's signer gave this key to this epoch. A tenth of a millisecond."""
    if len(certificate.public_key) != PUBLIC_KEY_BYTES:
        return False
    message = _message(log_id, producer, epoch, certificate.public_key)
    return market_keys.verify(certificate.signed_by, message, certificate.signature)


def _message(log_id: str, producer: str, epoch: str, public_key: bytes) -> bytes:
    # Lengths first, so that no two different texts make one message.
    texts = [text.encode() for text in (log_id, producer, epoch)]
    return b"modelmarket epoch 1\0" + b"".join(b"%d:%s" % (len(text), text) for text in texts) + public_key
