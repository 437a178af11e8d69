"""The Kafka headers of a fact: the CloudEvents attributes, so that other people's tools can tell facts apart without the schema.

Source: CloudEvents Kafka protocol binding 1.0.2, binary content mode. Decided facts add their chain position (`events.log.chain`).
"""

from __future__ import annotations

import time
from functools import lru_cache

from events.facts.fact import Fact

CE_ID, CE_TYPE, CE_SOURCE, CE_TIME, CE_SPECVERSION = "ce_id", "ce_type", "ce_source", "ce_time", "ce_specversion"


def cloud_event_headers(name: str, event_id: str, producer: str, occurred_at: int) -> dict[str, bytes]:
    """`name` is the fact's class name, `occurred_at` in microseconds UTC; `ce_time` is RFC 3339 with microseconds."""
    second, microseconds = divmod(occurred_at, 1_000_000)
    return {
        CE_ID: event_id.encode(),
        CE_TYPE: name.encode(),
        CE_SOURCE: b"modelmarket/" + producer.encode(),
        CE_TIME: b"%s.%06dZ" % (_second(second), microseconds),
        CE_SPECVERSION: b"1.0",
    }


def headers_of(fact: Fact) -> dict[str, bytes]:
    return cloud_event_headers(type(fact).__name__, fact.event_id, fact.producer, fact.occurred_at)


@lru_cache(maxsize=16)  # a gateway writes thousands of facts within one second
def _second(second: int) -> bytes:
    return b"%04d-%02d-%02dT%02d:%02d:%02d" % time.gmtime(second)[:6]
