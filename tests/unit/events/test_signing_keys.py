"""Signing keys: created once, read from the settings or the data folder, and replaced without a pause."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from events.log.record import Record
from events.log.signature import is_signed, signed_headers
from events.process.settings import Settings
from events.process.signing_keys import SIGNERS, KeyMissing, PublicKeys, mint_keys, public_keys, signing_key
from tests.support.todays_codec import RELAY_KEY, SETUP_KEY, settings_with_keys


def test_processes_that_start_at_once_share_one_pair_of_keys_that_only_the_owner_can_read(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    with pytest.raises(KeyMissing, match="prepare"):
        public_keys(settings, "setup")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(mint_keys, [settings] * 8))
    for signer in SIGNERS:
        key = signing_key(settings, signer)
        assert public_keys(settings, signer).verify(key.key_id, b"said", key.sign(b"said"))
        assert stat.S_IMODE((tmp_path / "keys" / f"{signer}.key").stat().st_mode) == 0o600
    assert len({signing_key(settings, signer).key_id for signer in SIGNERS}) == 3


def test_the_signer_makes_its_own_key_and_no_other(tmp_path: Path) -> None:
    mint_keys(Settings(data=tmp_path), ["market"])
    assert {file.name for file in (tmp_path / "keys").iterdir()} == {"market.key", "market.pub"}


def test_a_process_with_public_keys_in_its_settings_makes_no_keys_and_cannot_sign(tmp_path: Path) -> None:
    settings = settings_with_keys(data=tmp_path)
    mint_keys(settings)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyMissing, match="MODELMARKET_RELAY_KEY"):
        signing_key(settings, "relay")


def test_while_a_key_is_replaced_both_count_and_afterwards_only_the_new_one() -> None:
    value = b"value"
    old, new = (Record("t", 0, 0, 0, b"k", value, signed_headers(key, "t", b"k", value)) for key in (SETUP_KEY, RELAY_KEY))
    both, after = PublicKeys([SETUP_KEY.public, RELAY_KEY.public]), PublicKeys([RELAY_KEY.public])
    assert [is_signed(r, both) for r in (old, new)] == [True, True]
    assert [is_signed(r, after) for r in (old, new)] == [False, True]


@pytest.mark.parametrize("headers", [{}, {"signature": b"", "signed_by": b""}, {"signature": b"x" * 64, "signed_by": b"\xff"}])
def test_a_malformed_signature_is_refused(headers: dict[str, bytes]) -> None:
    assert not is_signed(Record("t", 0, 0, 0, None, None, headers), PublicKeys([SETUP_KEY.public]))
    known = {**headers, "signed_by": SETUP_KEY.key_id.encode()}
    assert not is_signed(Record("t", 0, 0, 0, None, None, known), PublicKeys([SETUP_KEY.public]))
