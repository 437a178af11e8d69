"""The first step of a call: who sends it, and whether the key is for this. The refusals are those of every listener (`access`)."""

from __future__ import annotations

from access.codes import Refusal
from access.keys import Keys
from access.principal import Principal, require_scope
from events.facts.accounts import Scope
from serving.refused import Refused


def identify(keys: Keys, authorization: bytes | None, now_us: int) -> Principal:
    """The holder of the key in an Authorization header. Raises Refused (401)."""
    found = keys.authenticate(authorization, now_us)
    if isinstance(found, Refusal):
        raise access_refused(found)
    return found


def require(principal: Principal, scope: Scope) -> None:
    """Raises Refused (403) without the scope."""
    lacking = require_scope(principal, scope)
    if lacking is not None:
        raise access_refused(lacking)


def access_refused(refusal: Refusal) -> Refused:
    """A refusal of access as the gateway answers it."""
    headers = tuple((name.lower().encode(), value.encode()) for name, value in refusal.headers.items())
    refused_by = refusal.violation
    return Refused(refusal.status, refused_by.code, refused_by.message, refused_by.field, refused_by.remedy, headers=headers)
