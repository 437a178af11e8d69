"""Instants as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

MICROS_MAX = 1 << 53
"""Year 2255: what every JSON reader keeps exactly."""


class NotAnInstant(ValueError):
    """This text names no instant."""


def instant_of(text: str) -> int:
    """µs since 1970 UTC of ISO 8601 (UTC where no zone is said) or of digits that are microseconds already."""
    try:
        if text.isascii() and text.isdigit():
            micros = int(text)
        else:
            parsed = datetime.fromisoformat(text)
            since = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
            micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    except (ValueError, OverflowError) as e:
        raise NotAnInstant(f"'{text}' is no instant") from e
    if not 0 <= micros <= MICROS_MAX:
        raise NotAnInstant(f"'{text}' is out of range")
    return micros
