"""The refusals of access: one code, message and remedy for each reason, in every listener.

Challenges follow RFC 6750 (bearer tokens): `invalid_token` for a key that does not open anything, `insufficient_scope` for one that opens
other things.
"""

from __future__ import annotations

from dataclasses import dataclass

from events.process.problem import Violation

PREFIX = "mm_"
"""The first characters of every API key that the market issues, so that people and secret scanners recognise one."""
SECRET_CHARS_MAX = 200
"""Longest secret; an issued one has 46 characters."""
REALM = "modelmarket"

_HEADER = "Authorization"
_SEND = f"send the header 'Authorization: Bearer {PREFIX}…'"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller may not. `challenge` is the value of WWW-Authenticate and `retry_after_s` of Retry-After; empty or 0: no such header."""

    status: int
    violation: Violation
    challenge: str = ""
    retry_after_s: int = 0

    @property
    def code(self) -> str:
        return self.violation.code

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the HTTP answer."""
        challenge = {"WWW-Authenticate": self.challenge} if self.challenge else {}
        return challenge | ({"Retry-After": str(self.retry_after_s)} if self.retry_after_s else {})


def _challenge(error: str = "", message: str = "", scopes: tuple[str, ...] = ()) -> str:
    parameters = {"realm": REALM, "error": error, "error_description": message, "scope": " ".join(scopes)}
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parameters.items() if value)


def _bad_key(code: str, message: str, remedy: str) -> Refusal:
    return Refusal(401, Violation(code, message, _HEADER, remedy), _challenge("invalid_token", message))


KEY_MISSING = Refusal(401, Violation("key_missing", "this needs an API key", _HEADER, _SEND), _challenge())
KEY_MALFORMED = _bad_key(
    "key_malformed", "the Authorization header holds no API key", f"{_SEND}: one key of at most {SECRET_CHARS_MAX} visible ASCII characters"
)
KEY_UNKNOWN = _bad_key("key_unknown", "this API key is not known", "check that the whole key was sent, and that this is the right market")
KEY_REVOKED = _bad_key("key_revoked", "this API key was revoked", "ask an admin for a new key")
KEY_EXPIRED = _bad_key("key_expired", "this API key has expired", "ask an admin for a new key")

TENANT_FOREIGN = Refusal(
    403,
    Violation("tenant_foreign", "this API key acts for its own tenant only", "tenant", "leave the tenant out, or use a key of that tenant"),
)
MODEL_FOREIGN = Refusal(
    403,
    Violation(
        "model_foreign",
        "only the owner of a model and reviewers see its drafts and its history",
        "model",
        "GET /v1/catalog/{model} shows what is public",
    ),
)


def scope_missing(*scopes: str) -> Refusal:
    """The key is good, but has none of the scopes, of which one is needed."""
    message, plural = f"this API key lacks the scope {' or '.join(scopes)}", "one of these scopes" if len(scopes) > 1 else "this scope"
    return Refusal(
        403,
        Violation("scope_missing", message, _HEADER, f"ask an admin for a key with {plural}"),
        _challenge("insufficient_scope", message, scopes),
    )


def keys_stale(age_s_max: float) -> Refusal:
    """No heartbeat came for so long that a revoked key could still be accepted (K5)."""
    message = f"nothing was heard from the log for {age_s_max:.0f} s: a key may have been revoked meanwhile"
    return Refusal(
        503, Violation("keys_stale", message, "", "try again in 5 s; if it lasts, the operator looks at the relay"), retry_after_s=5
    )
