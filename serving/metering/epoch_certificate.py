"""Has the key of a producer epoch certified by the market's signer (K13), once, before the epoch opens."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from events.process.passwords import signer_password
from events.process.settings import Settings
from events.process.signing_keys import KeyMissing, public_keys
from events.producers.epoch_key import EpochCertificate, is_certified

RETRY_S = 0.2
ATTEMPT_S_MAX = 2.0
"""An answer takes a millisecond."""
_TRANSIENT = (408, 429)


class SignerUnavailable(Exception):
    """The signer did not answer in time. It may be starting."""


class SignerRefused(Exception):
    """The signer, or what it said, does not belong to this market: to ask again changes nothing. The text says what to do."""


class _NoAnswer(Exception):
    """Not now."""


async def certified(settings: Settings, log_id: str, producer: str, epoch: str, public_key: bytes, *, within_s: float) -> EpochCertificate:
    """The certificate of this epoch's key (32 bytes), checked against the market's public keys. Asks again until `within_s` have passed.
    Raises SignerUnavailable, SignerRefused."""
    asked = {"log_id": log_id, "producer": producer, "epoch": epoch, "public_key": public_key.hex()}
    ends = time.monotonic() + within_s
    async with httpx.AsyncClient(base_url=settings.signer, timeout=None) as client:  # the time-out is that of the whole attempt
        while True:
            try:
                async with asyncio.timeout(min(ATTEMPT_S_MAX, ends - time.monotonic())):
                    answer = await _ask(client, settings, asked)
                break
            except (_NoAnswer, httpx.TransportError, TimeoutError) as e:
                if time.monotonic() + RETRY_S >= ends:
                    reason = str(e) or "no answer in time"
                    raise SignerUnavailable(
                        f"the market's signer at {settings.signer} did not answer within {within_s:g} s: {reason}"
                    ) from e
            await asyncio.sleep(RETRY_S)
    return _checked(settings, asked, answer)


async def _ask(client: httpx.AsyncClient, settings: Settings, asked: dict[str, str]) -> Any:
    password = signer_password(settings)
    if not password:
        raise _NoAnswer("its password is neither in MODELMARKET_SIGNER_PASSWORD nor in the data folder yet")
    answer = await client.post("/v1/epochs", json=asked, headers={"Authorization": f"Bearer {password}"})
    if answer.status_code >= 500 or answer.status_code in _TRANSIENT:
        raise _NoAnswer(f"HTTP {answer.status_code}")
    try:
        document: Any = answer.json()
    except ValueError:
        document = None
    if answer.status_code != 200:
        refusal = "; ".join(
            str(document[member]) for member in ("code", "field", "detail", "remedy") if isinstance(document, dict) and document.get(member)
        )
        raise SignerRefused(f"the market's signer at {settings.signer} refused: HTTP {answer.status_code} {refusal}")
    return document


def _checked(settings: Settings, asked: dict[str, str], answer: Any) -> EpochCertificate:
    try:
        certificate = EpochCertificate(bytes.fromhex(asked["public_key"]), str(answer["signed_by"]), bytes.fromhex(answer["certificate"]))
        believed = public_keys(settings, "market")
    except KeyMissing as e:
        raise SignerRefused(str(e)) from e
    except (KeyError, TypeError, ValueError) as e:
        raise SignerRefused(f"what answers at {settings.signer} is no signer: set MODELMARKET_SIGNER_URL") from e
    if not is_certified(certificate, asked["log_id"], asked["producer"], asked["epoch"], believed):
        raise SignerRefused(
            f"the signer at {settings.signer} signs with key {certificate.signed_by}, which does not count here: "
            "name its public key in MODELMARKET_MARKET_PUBLIC_KEYS of every process"
        )
    return certificate
