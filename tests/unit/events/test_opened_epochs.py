"""Which epochs are opened: by a certificate of the market's signer, checked for those that somebody asks for."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from events.log.record import Record
from events.process.signing_keys import SigningKey
from events.producers import opened_epochs
from events.producers.epoch_key import certify
from events.producers.opened_epochs import VERIFIERS_MAX, OpenedEpochs
from tests.support.todays_codec import MARKET_KEY, MARKET_KEYS, RELAY_KEY, todays_codec

CODEC = todays_codec()
KEY, OTHER_KEY = SigningKey(bytes(32)), SigningKey(bytes(31) + b"\1")


def opening(epoch: str, by: SigningKey = MARKET_KEY, key: SigningKey = KEY) -> Record:
    certificate = certify(by, "log", "gateway", epoch, key.public)
    signed = {"public_key": certificate.public_key, "certified_by": MARKET_KEY.key_id, "certificate": certificate.signature}
    common = {"event_id": str(uuid.uuid4()), "occurred_at": 1, "producer": "gateway", "log_id": "log", "host": "h", "region": "local"}
    value = CODEC.encode_dict("ProducerOpened", {**common, "epoch": epoch, **signed})
    return Record("producers", 0, 0, 1, b"gateway", value, {})


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The epochs whose certificates were checked, in order."""
    epochs, is_certified = list[str](), opened_epochs.is_certified

    def counted(certificate: Any, log_id: str, producer: str, epoch: str, keys: Any) -> bool:
        epochs.append(epoch)
        return is_certified(certificate, log_id, producer, epoch, keys)

    monkeypatch.setattr(opened_epochs, "is_certified", counted)
    return epochs


def test_a_year_of_epochs_costs_one_check_for_each_that_is_asked_for(checked: list[str]) -> None:
    opened = OpenedEpochs(CODEC, "log", MARKET_KEYS)
    opened.add(opening(f"e{n}") for n in range(2_000))
    assert checked == []
    assert [opened.verifier(epoch) is not None for epoch in ("e7", "e7", "never", "e1999")] == [True, True, False, True]
    assert checked == ["e7", "e1999"]


def test_of_many_who_claim_an_epoch_the_first_certified_one_holds(checked: list[str]) -> None:
    opened = OpenedEpochs(CODEC, "log", MARKET_KEYS)
    forged = [opening("e", RELAY_KEY, OTHER_KEY) for _ in range(5)]
    opened.add([*forged, opening("e"), opening("e", key=OTHER_KEY), *forged])
    verifier = opened.verifier("e")
    assert verifier is not None
    assert opened._keys == {"e": KEY.public}  # pyright: ignore[reportPrivateUsage]
    assert len(checked) == 6
    opened.add([opening("alone", RELAY_KEY)])
    assert opened.verifier("alone") is None


def test_an_epoch_that_is_asked_for_again_has_the_verifier_that_knows_what_it_checked() -> None:
    opened = OpenedEpochs(CODEC, "log", MARKET_KEYS)
    opened.add(opening(f"e{n}") for n in range(VERIFIERS_MAX + 1))
    first = opened.verifier("e0")
    for n in range(1, VERIFIERS_MAX):
        opened.verifier(f"e{n}")
    assert opened.verifier("e0") is first
    opened.verifier(f"e{VERIFIERS_MAX}")
    assert opened.verifier("e0") is first
    assert len(opened._verifiers) == VERIFIERS_MAX  # pyright: ignore[reportPrivateUsage]
    assert opened.verifier("e1") is not None, "it was forgotten, and is made again"
