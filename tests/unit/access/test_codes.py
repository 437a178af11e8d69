"""Every refusal of access has a stable code, a reason, a remedy, and the header that its status asks for (RFC 6750, RFC 9110)."""

from __future__ import annotations

import re

import pytest

from access import codes
from access.codes import Refusal, keys_stale, scope_missing

ALL = [r for r in vars(codes).values() if isinstance(r, Refusal)] + [scope_missing("read"), scope_missing("read", "deploy"), keys_stale(60)]


@pytest.mark.parametrize("refusal", ALL, ids=lambda r: r.code)
def test_a_refusal_says_what_is_wrong_and_what_to_do(refusal: Refusal) -> None:
    assert re.fullmatch(r"[a-z]+_[a-z]+", refusal.code)
    assert refusal.violation.message and refusal.violation.remedy
    assert (refusal.status == 401) <= refusal.challenge.startswith('Bearer realm="modelmarket"')
    assert (refusal.status == 503) == bool(refusal.retry_after_s)
    assert refusal.challenge.isascii() and "\n" not in refusal.challenge


def test_codes_and_statuses_stay_as_they_are() -> None:
    assert {r.code: r.status for r in ALL} == {
        "key_missing": 401,
        "key_malformed": 401,
        "key_unknown": 401,
        "key_revoked": 401,
        "key_expired": 401,
        "scope_missing": 403,
        "tenant_foreign": 403,
        "model_foreign": 403,
        "keys_stale": 503,
    }


def test_challenges_of_an_invalid_a_missing_and_an_insufficient_key_differ() -> None:
    assert codes.KEY_MISSING.headers == {"WWW-Authenticate": 'Bearer realm="modelmarket"'}
    assert 'error="invalid_token"' in codes.KEY_EXPIRED.challenge
    assert scope_missing("read", "deploy").challenge.endswith('scope="read deploy"')
    assert keys_stale(60).headers == {"Retry-After": "5"}
    assert codes.TENANT_FOREIGN.headers == {}
