"""What an outsider sees: ClickHouse through its official client, Kafka through its own, and nothing of the market's code."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect

from events.catalogue import TOPICS
from events.log import Reader
from events.settings import Settings


def analyst(settings: Settings) -> Any:
    """A ClickHouse client, as an analyst would open it."""
    url = urlsplit(settings.clickhouse)
    return clickhouse_connect.get_client(
        host=url.hostname or "",
        port=url.port or 8123,
        username=settings.clickhouse_user,
        password=settings.clickhouse_password.get_secret_value(),
        database=settings.clickhouse_database,
        autogenerate_session_id=False,
    )


def facts_on_log(settings: Settings) -> dict[str, int]:
    """Records per fact topic, from Kafka's own offsets (they are dense: K1)."""
    reader = Reader(settings, "demo")
    topics = [t for t in TOPICS if t not in ("heartbeats",)]
    counts = dict.fromkeys(topics, 0)
    for (topic, _), (low, high) in reader.bounds(*topics).items():
        counts[topic] += high - low
    reader.close()
    return counts
