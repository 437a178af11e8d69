"""What an independent observer sees: ClickHouse through its official client, and the log read by coordinates, without any fold."""

from __future__ import annotations

from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect

from events.facts.topics import TOPICS
from events.log.client import Reader
from events.process.passwords import clickhouse_password
from events.process.settings import Settings


def analyst(settings: Settings) -> Any:
    """A ClickHouse client of the market's own analyst, who sees every tenant; a tenant's would give `analyst` and an API key."""
    url = urlsplit(settings.clickhouse)
    return clickhouse_connect.get_client(
        host=url.hostname or "",
        port=url.port or 8123,
        username=settings.clickhouse_user,
        password=clickhouse_password(settings),
        database=settings.clickhouse_database,
        autogenerate_session_id=False,
    )


class LogObserver:
    """Reads the log with a consumer of its own, and returns what came since the last call. A record's headers name its fact."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._next = settings, dict[tuple[str, int], int]()

    def new(self) -> Counter[tuple[str, str]]:
        """(topic, fact) → records that came since. Heartbeats are no facts, and records of schemas are not counted."""
        found = Counter[tuple[str, str]]()
        reader = Reader(self._settings, "demo")
        for topic in (t for t in TOPICS if t not in ("heartbeats", "schemas")):
            for record in reader.read(topic, {p: offset for (t, p), offset in self._next.items() if t == topic}):
                self._next[topic, record.partition] = record.offset + 1
                found[topic, record.headers.get("ce_type", b"?").decode("utf-8", "replace")] += 1
        reader.close()
        return found

    def seen(self) -> int:
        """Records read so far: offsets are dense (K1)."""
        return sum(self._next.values())
