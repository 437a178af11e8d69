"""The API keys of tenants: whether one was its tenant's when a call began (K13). From the history of accounts, and where that is behind, from the log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from events.facts.topics import TOPICS
from events.log.client import Reader
from events.log.decided_records import DecidedRecords
from events.log.heartbeat import relay_keys
from events.log.partitioner import partition_of
from events.schema.codec import Codec
from projections.ingest.clickhouse import ClickHouse
from rating.key_terms import KeyTerm, began_us, key_terms

T = TypeVar("T")
Body = Mapping[str, Any]
NAMED_MAX = 500
"""Names in one query, which is sent in a URL."""


class TenantKeys:
    """Of the calls that are looked at together."""

    def __init__(self, clickhouse: ClickHouse, reader: Reader, codec: Codec) -> None:
        self._clickhouse, self._reader, self._codec = clickhouse, reader, codec

    def foreign(self, calls: Mapping[T, tuple[Body, int]]) -> set[T]:
        """Of these calls (the body of an `InvocationSettled`, and when it was appended, µs UTC) those with a key that was not their tenant's then."""
        terms = self._stored({body["tenant"] for body, _ in calls.values()})
        foreign = {which for which, call in calls.items() if not _covered(*call, terms)}
        # A key was on the log before its first call, but its history may come later than the call.
        if foreign:
            recorded = self._recorded({calls[which][0]["tenant"] for which in foreign})
            foreign = {which for which in foreign if not _covered(*calls[which], recorded)}
        return foreign

    def _stored(self, tenants: set[str]) -> dict[str, dict[str, KeyTerm]]:
        facts: dict[str, list[tuple[str, Body]]] = {tenant: [] for tenant in tenants}
        for some in parts(sorted(tenants)):
            rows = self._clickhouse.rows(
                """SELECT key, fact, body FROM history WHERE topic = 'accounts' AND key IN {tenants:Array(String)}
                AND fact IN ('ApiKeyIssued', 'ApiKeyRevoked') ORDER BY key, step""",
                {"tenants": some},
            )
            for row in rows:
                facts[row["key"]].append((row["fact"], json.loads(row["body"])))
        return _terms(facts)

    def _recorded(self, tenants: set[str]) -> dict[str, dict[str, KeyTerm]]:
        facts: dict[str, list[tuple[str, Body]]] = {tenant: [] for tenant in tenants}
        count = TOPICS["accounts"].partitions
        needed = {partition_of(tenant.encode(), count) for tenant in tenants}
        records = self._reader.read("accounts", end={p: 0 for p in range(count) if p not in needed})
        for claim in DecidedRecords(relay_keys(self._reader.settings)).of(records):
            name, body = self._codec.decode(claim.record.value)
            if body.get("tenant") in facts:
                facts[body["tenant"]].append((name, body))
        return _terms(facts)


def parts(names: Sequence[str]) -> Iterator[list[str]]:
    """At most NAMED_MAX at once."""
    yield from (list(names[i : i + NAMED_MAX]) for i in range(0, len(names), NAMED_MAX))


def _terms(facts: Mapping[str, Iterable[tuple[str, Body]]]) -> dict[str, dict[str, KeyTerm]]:
    return {tenant: key_terms(of_tenant) for tenant, of_tenant in facts.items()}


def _covered(body: Body, append_us: int, terms: Mapping[str, Mapping[str, KeyTerm]]) -> bool:
    term = terms[body["tenant"]].get(body["key_id"])
    return term is not None and term.covers(began_us(body, append_us))
