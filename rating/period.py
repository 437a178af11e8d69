"""A billing period: a month or a day in the tenant's time zone."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

_PERIOD = re.compile(r"^(\d{4})-(\d{2})(?:-(\d{2}))?$", re.ASCII)


class InvalidPeriod(ValueError):
    """The text names no month and no day, or the time zone is unknown."""


def period_bounds(period: str, timezone: str) -> tuple[int, int]:
    """First instant and first instant after `YYYY-MM` or `YYYY-MM-DD` in a tenant's zone, µs UTC. Raises InvalidPeriod."""
    found = _PERIOD.match(period)
    if found is None:
        raise InvalidPeriod(f"'{period}' is no period: write YYYY-MM or YYYY-MM-DD")
    try:
        year, month, day = int(found[1]), int(found[2]), int(found[3] or 1)
        first = date(year, month, day)
        after = first + timedelta(days=1) if found[3] else date(year + month // 12, month % 12 + 1, 1)
        zone = ZoneInfo(timezone)
        start, end = (int(datetime(d.year, d.month, d.day, tzinfo=zone).timestamp()) for d in (first, after))
    except (ValueError, OverflowError, OSError) as e:
        raise InvalidPeriod(f"'{period}' is no period in {timezone}: {e}") from e
    return start * 1_000_000, end * 1_000_000


def month_of(instant: int, timezone: str) -> str:
    """The month that runs at an instant (µs UTC) in a zone, as `YYYY-MM`."""
    return datetime.fromtimestamp(instant / 1_000_000, UTC).astimezone(ZoneInfo(timezone)).strftime("%Y-%m")
