"""Signing keys: Ed25519 (RFC 8032) of set-up, which signs the identity of the log, of the relay, which signs its heartbeats, and of the
market, with which its signer certifies the key of each producer epoch.

A private key is a setting of the one process that signs, else a file in the data folder that only its owner can read. Public keys are a
setting of every process, else the file beside it. Several may count at once, so a key is replaced without a pause: name the new one
everywhere, then sign with it, then name the old one no more.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import SecretStr

from events.process.admin_key import keep_first
from events.process.settings import Settings

Signer = Literal["setup", "relay", "market"]
SIGNERS: tuple[Signer, ...] = get_args(Signer)
SEED_BYTES = 32
KEY_ID_CHARACTERS = 16


class KeyMissing(ValueError):
    """The text says which key, and where it is looked for."""


class SigningKey:
    def __init__(self, seed: bytes) -> None:
        """`seed`: 32 bytes, the private key of RFC 8032."""
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()
        self.key_id = key_id_of(self.public)

    @classmethod
    def new(cls) -> SigningKey:
        return cls(secrets.token_bytes(SEED_BYTES))

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._private.sign(message)


class PublicKeys:
    """Those of one signer that count now."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = {key_id_of(key): Ed25519PublicKey.from_public_bytes(key) for key in keys}

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def verify(self, key_id: str, message: bytes, signature: bytes) -> bool:
        key = self._keys.get(key_id)
        if key is None:
            return False
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def signing_key(settings: Settings, signer: Signer) -> SigningKey:
    """Raises KeyMissing."""
    given = _given(settings, signer)[0].get_secret_value()
    file = _folder(settings) / f"{signer}.key"
    try:
        return SigningKey(bytes.fromhex(given or file.read_text().strip()))
    except (OSError, ValueError) as e:
        raise KeyMissing(f"no private key of {signer}: neither MODELMARKET_{signer.upper()}_KEY nor {file} is one: {e}") from e


def public_keys(settings: Settings, signer: Signer) -> PublicKeys:
    """Raises KeyMissing."""
    given = _given(settings, signer)[1]
    file = _folder(settings) / f"{signer}.pub"
    try:
        return PublicKeys(bytes.fromhex(key.strip()) for key in (given or file.read_text()).split(","))
    except (OSError, ValueError) as e:
        raise KeyMissing(
            f"no public key of {signer}: neither MODELMARKET_{signer.upper()}_PUBLIC_KEYS nor {file} is one: {e}; `python -m cli.prepare` mints them"
        ) from e


def mint_keys(settings: Settings, signers: Iterable[Signer] = SIGNERS) -> None:
    """Makes the keys that neither settings nor data folder have, and keeps them there. Safe to repeat, and by several processes at once."""
    for signer in signers:
        given, public_given = _given(settings, signer)
        if public_given:
            continue  # with public keys in the settings, the private ones are elsewhere
        if not given.get_secret_value():
            keep_first(_folder(settings) / f"{signer}.key", secrets.token_bytes(SEED_BYTES).hex())
        keep_first(_folder(settings) / f"{signer}.pub", signing_key(settings, signer).public.hex(), 0o644)


def _given(settings: Settings, signer: Signer) -> tuple[SecretStr, str]:
    """The private key, and the public ones, that the settings name."""
    keys: dict[Signer, tuple[SecretStr, str]] = {
        "setup": (settings.setup_key, settings.setup_public_keys),
        "relay": (settings.relay_key, settings.relay_public_keys),
        "market": (settings.market_key, settings.market_public_keys),
    }
    return keys[signer]


def _folder(settings: Settings) -> Path:
    return settings.folder / "keys"


def key_id_of(public: bytes) -> str:
    """How records name a key: a prefix of the SHA-256 of its public half."""
    return hashlib.sha256(public).hexdigest()[:KEY_ID_CHARACTERS]
