"""The certificate of an epoch's key: it says whose one key is, on one log, and a change of anything ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.process.signing_keys import SigningKey
from events.producers.epoch_key import EpochCertificate, certify, is_certified
from tests.support.todays_codec import MARKET_KEY, MARKET_KEYS, RELAY_KEY, RELAY_KEYS

KEY = SigningKey(bytes(32)).public
WHOSE = ("log", "producer", "epoch")
CERTIFICATE = certify(MARKET_KEY, *WHOSE, KEY)
CUTS = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted)


def test_it_counts_for_whom_it_was_given_and_names_the_markets_key() -> None:
    assert is_certified(CERTIFICATE, *WHOSE, MARKET_KEYS)
    assert (CERTIFICATE.signed_by, CERTIFICATE.public_key, len(CERTIFICATE.signature)) == (MARKET_KEY.key_id, KEY, 64)


def test_who_does_not_hold_the_markets_key_certifies_nothing() -> None:
    assert not is_certified(CERTIFICATE, *WHOSE, RELAY_KEYS)
    forged = certify(RELAY_KEY, *WHOSE, KEY)
    assert not is_certified(forged, *WHOSE, MARKET_KEYS)
    assert not is_certified(replace(forged, signed_by=MARKET_KEY.key_id), *WHOSE, MARKET_KEYS)


@given(st.text(st.sampled_from("ab1:\0é"), min_size=8, max_size=8), CUTS, CUTS)
def test_two_epochs_whose_names_join_to_one_text_share_no_certificate(joined: str, cuts: list[int], other_cuts: list[int]) -> None:
    one, other = ((joined[:a], joined[a:b], joined[b:]) for a, b in (cuts, other_cuts))
    assert is_certified(certify(MARKET_KEY, *one, KEY), *other, MARKET_KEYS) == (one == other)


@pytest.mark.parametrize("part", ["public_key", "signature"])
def test_a_flipped_bit_anywhere_is_refused(part: str) -> None:
    right: bytes = getattr(CERTIFICATE, part)
    for bit in range(len(right) * 8):
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        assert not is_certified(replace(CERTIFICATE, **{part: bytes(wrong)}), *WHOSE, MARKET_KEYS), bit


@pytest.mark.parametrize("key", [b"", KEY[:31], KEY + b"\0"])
def test_a_key_of_another_length_is_neither_certified_nor_believed(key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        certify(MARKET_KEY, *WHOSE, key)
    assert not is_certified(EpochCertificate(key, MARKET_KEY.key_id, CERTIFICATE.signature), *WHOSE, MARKET_KEYS)


@pytest.mark.parametrize("signature", [b"", CERTIFICATE.signature[:-1], CERTIFICATE.signature + b"\0", bytes(64)])
def test_a_signature_of_another_length_or_of_nothing_is_refused(signature: bytes) -> None:
    assert not is_certified(replace(CERTIFICATE, signature=signature), *WHOSE, MARKET_KEYS)
