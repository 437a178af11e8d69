"""The tables and views of everything decided, and of alerts and schemas: documents with their history, for the query API and for analysts' own SQL."""

from __future__ import annotations

from dataclasses import asdict

from events.facts.accounts import KEY_DIMENSIONS
from lifecycle.resources import QUOTA_DEFAULT

# By key: a page and a fold ask for some keys, and no more is read than 512 rows around each.
HISTORY_ROWS = """
CREATE TABLE IF NOT EXISTS history_rows (
    topic LowCardinality(String),
    kafka_partition Int32,
    kafka_offset Int64,
    kafka_time_ms Int64,
    step Int64 COMMENT 'order of folding within the partition',
    kind LowCardinality(String) COMMENT 'decided | observed | copy | store | dead',
    fact LowCardinality(String),
    key String,
    event_id String,
    valid_from_us Int64 COMMENT 'when it happened, microseconds UTC',
    store String,
    position Int64,
    chain_sha256 String COMMENT 'of a decided record: its hash in the chain of its partition, hex',
    sha256 FixedString(64),
    body String CODEC(ZSTD(1)) COMMENT 'the fact as JSON',
    tenant String COMMENT 'whose document it is',
    head String CODEC(ZSTD(1)) COMMENT 'the document of the key after it, without its collections, as JSON; empty: as before',
    parts Map(String, String) CODEC(ZSTD(1)) COMMENT 'members of collections that it changed: collection/member, and JSON; empty: gone',
    valid_from DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(valid_from_us)
) ENGINE = ReplacingMergeTree
PARTITION BY topic
ORDER BY (topic, key, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000, index_granularity = 512
"""

# A paused older owner may write a row again with the same content (K8): every view reads through FINAL.
HISTORY = """
CREATE OR REPLACE VIEW history AS
SELECT topic, key, fact, kind, valid_from, valid_from_us, step, position, kafka_partition, kafka_offset, event_id, sha256, tenant, body, head, parts
FROM history_rows FINAL
WHERE kind IN ('decided', 'observed')
"""

# Without FINAL: the same change twice changes nothing.
HISTORY_PARTS = """
CREATE OR REPLACE VIEW history_parts AS
SELECT topic, kafka_partition, key, step, valid_from_us, '' AS part, head AS state FROM history_rows WHERE head != ''
UNION ALL
SELECT topic, kafka_partition, key, step, valid_from_us, part, state
FROM history_rows ARRAY JOIN mapKeys(parts) AS part, mapValues(parts) AS state
"""

DOCUMENTS = """
CREATE OR REPLACE VIEW documents AS
SELECT topic, key, argMaxIf(head, step, head != '') AS head, argMax(fact, step) AS last_fact, max(valid_from_us) AS changed_us, count() AS facts
FROM history GROUP BY topic, key
"""

DOCUMENT_PARTS = """
CREATE OR REPLACE VIEW document_parts AS
SELECT topic, key, splitByChar('/', part)[1] AS collection, substring(part, length(collection) + 2) AS member,
    argMax(state, step) AS state, max(valid_from_us) AS changed_us
FROM history_parts WHERE part != '' GROUP BY topic, key, part HAVING state != ''
"""

CATALOG = """
CREATE OR REPLACE VIEW catalog AS
SELECT
    m.key AS model,
    JSONExtractString(m.head, 'tenant') AS tenant,
    JSONExtractString(m.head, 'domain') AS domain,
    JSONExtractString(m.head, 'team') AS team,
    JSONExtractString(m.head, 'name') AS name,
    JSONExtractString(m.head, 'scenario') AS scenario,
    JSONExtractString(m.head, 'task') AS task,
    JSONExtractString(m.head, 'owner') AS owner,
    JSONExtractString(m.head, 'description') AS description,
    JSONExtract(m.head, 'tags', 'Array(String)') AS tags,
    v.names AS versions,
    JSONExtractString(d.head, 'live') AS live,
    JSONExtractString(d.head, 'candidate') AS candidate,
    JSONExtract(d.head, 'weights', 'Map(String, Int32)') AS weights,
    JSONType(m.head, 'retired') = 'Object' AS retired,
    fromUnixTimestamp64Micro(greatest(m.changed_us, d.changed_us)) AS changed
FROM (SELECT * FROM documents WHERE topic = 'models') AS m
LEFT JOIN (
    SELECT key, arraySort(groupArray(member)) AS names FROM document_parts WHERE topic = 'models' AND collection = 'versions' GROUP BY key
) AS v ON m.key = v.key
LEFT JOIN (SELECT * FROM documents WHERE topic = 'deployments') AS d ON m.key = d.key
"""

CATALOG_HISTORY = """
CREATE OR REPLACE VIEW catalog_history AS
SELECT key AS model, topic, fact, valid_from,
    leadInFrame(toNullable(valid_from)) OVER (PARTITION BY topic, key ORDER BY step ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS valid_to,
    JSONExtractString(body, 'by') AS by, position, kafka_partition, kafka_offset, event_id, body, head, parts
FROM history WHERE topic IN ('models', 'deployments')
"""

TENANTS = f"""
CREATE OR REPLACE VIEW tenants AS
SELECT d.key AS tenant,
    JSONExtractString(d.head, 'display_name') AS display_name,
    JSONExtractString(d.head, 'price_book') AS price_book,
    JSONExtractString(d.head, 'currency') AS currency,
    JSONExtractString(d.head, 'timezone') AS timezone,
    fromUnixTimestamp64Micro(JSONExtractInt(d.head, 'created_at')) AS created,
    {", ".join(f"if(JSONHas(d.head, 'quota'), JSONExtractInt(d.head, 'quota', '{f}'), {n}) AS quota_{f}" for f, n in asdict(QUOTA_DEFAULT).items())},
    p.members AS keys
FROM (SELECT key, head FROM documents WHERE topic = 'accounts') AS d
LEFT JOIN (SELECT key, count() AS members FROM document_parts WHERE topic = 'accounts' GROUP BY key) AS p ON d.key = p.key
"""

# The hash of a key is no secret (256 random bits), but a question about keys has no use for it.
API_KEYS = f"""
CREATE OR REPLACE VIEW api_keys AS
SELECT key AS tenant, member AS key_id,
    JSONExtractString(state, 'user') AS user,
    JSONExtract(state, 'scopes', 'Array(String)') AS scopes,
    {", ".join(f"JSONExtractString(state, '{name}') AS {name}" for name in KEY_DIMENSIONS)},
    fromUnixTimestamp64Micro(JSONExtractInt(state, 'issued_at')) AS issued,
    if(JSONExtractInt(state, 'expires_at') = 0, NULL, fromUnixTimestamp64Micro(JSONExtractInt(state, 'expires_at'))) AS expires,
    if(JSONExtractInt(state, 'revoked_at') = 0, NULL, fromUnixTimestamp64Micro(JSONExtractInt(state, 'revoked_at'))) AS revoked
FROM document_parts WHERE topic = 'accounts'
"""

PRICE_BOOK = """
CREATE OR REPLACE VIEW price_book AS
SELECT book, book_version, currency, effective_from,
    JSONExtractString(price, 'model') AS model,
    JSONExtractString(price, 'meter') AS meter,
    JSONExtractInt(price, 'amount_micros') AS amount_micros,
    JSONExtractInt(price, 'per_units') AS per_units,
    position
FROM (
    SELECT key AS book,
        JSONExtractInt(body, 'book_version') AS book_version,
        JSONExtractString(body, 'currency') AS currency,
        fromUnixTimestamp64Micro(JSONExtractInt(body, 'effective_from')) AS effective_from,
        arrayJoin(JSONExtractArrayRaw(body, 'prices')) AS price,
        position
    FROM history WHERE topic = 'prices' AND fact = 'PriceBookPublished'
)
"""

ALERTS = """
CREATE OR REPLACE VIEW alerts AS
SELECT key AS subject, member AS rule,
    JSONExtractString(state, 'severity') AS severity,
    JSONExtractString(state, 'message') AS message,
    JSONExtractString(state, 'remedy') AS remedy,
    fromUnixTimestamp64Micro(JSONExtractInt(state, 'raised_at')) AS raised,
    JSONExtractString(state, 'producer') AS producer,
    JSONExtractString(state, 'event_id') AS event_id
FROM document_parts WHERE topic = 'alerts'
"""

STATEMENTS = (
    HISTORY_ROWS,
    HISTORY,
    HISTORY_PARTS,
    DOCUMENTS,
    DOCUMENT_PARTS,
    CATALOG,
    CATALOG_HISTORY,
    TENANTS,
    API_KEYS,
    PRICE_BOOK,
    ALERTS,
)
"""In the order in which they must be made; each may be run again."""
