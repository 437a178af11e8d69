"""The wall clock in the unit of every fact: integer microseconds since 1970-01-01 UTC."""

from __future__ import annotations

import time


def now_us() -> int:
    return time.time_ns() // 1000
