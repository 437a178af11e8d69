"""The tables and views of everything decided, and of alerts and schemas: documents with their history, for the query API and for analysts' own SQL."""

from __future__ import annotations

from events.facts.accounts import KEY_DIMENSIONS

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
    state String CODEC(ZSTD(1)) COMMENT 'the whole document of the key after it, as JSON',
    valid_from DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(valid_from_us)
) ENGINE = ReplacingMergeTree
PARTITION BY topic
ORDER BY (topic, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
"""

# A paused older owner may write a row again with the same content (K8): every view reads through FINAL.
HISTORY = """
CREATE OR REPLACE VIEW history AS
SELECT topic, key, fact, kind, valid_from, valid_from_us, step, position, kafka_partition, kafka_offset, event_id, sha256, body, state
FROM history_rows FINAL
WHERE kind IN ('decided', 'observed')
"""

DOCUMENTS = """
CREATE OR REPLACE VIEW documents AS
SELECT topic, key, argMax(state, step) AS state, argMax(fact, step) AS last_fact, max(valid_from_us) AS changed_us, count() AS facts
FROM history GROUP BY topic, key
"""

CATALOG = """
CREATE OR REPLACE VIEW catalog AS
SELECT
    m.key AS model,
    JSONExtractString(m.state, 'tenant') AS tenant,
    JSONExtractString(m.state, 'domain') AS domain,
    JSONExtractString(m.state, 'team') AS team,
    JSONExtractString(m.state, 'name') AS name,
    JSONExtractString(m.state, 'scenario') AS scenario,
    JSONExtractString(m.state, 'task') AS task,
    JSONExtractString(m.state, 'owner') AS owner,
    JSONExtractString(m.state, 'description') AS description,
    JSONExtract(m.state, 'tags', 'Array(String)') AS tags,
    JSONExtractKeys(m.state, 'versions') AS versions,
    JSONExtractString(d.state, 'live') AS live,
    JSONExtractString(d.state, 'candidate') AS candidate,
    JSONExtract(d.state, 'weights', 'Map(String, Int32)') AS weights,
    JSONType(m.state, 'retired') = 'Object' AS retired,
    fromUnixTimestamp64Micro(greatest(m.changed_us, d.changed_us)) AS changed
FROM (SELECT * FROM documents WHERE topic = 'models') AS m
LEFT JOIN (SELECT * FROM documents WHERE topic = 'deployments') AS d ON m.key = d.key
"""

CATALOG_HISTORY = """
CREATE OR REPLACE VIEW catalog_history AS
SELECT key AS model, topic, fact, valid_from,
    leadInFrame(toNullable(valid_from)) OVER (PARTITION BY topic, key ORDER BY step ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS valid_to,
    JSONExtractString(body, 'by') AS by, position, kafka_partition, kafka_offset, event_id, body, state
FROM history WHERE topic IN ('models', 'deployments')
"""

TENANTS = """
CREATE OR REPLACE VIEW tenants AS
SELECT key AS tenant,
    JSONExtractString(state, 'display_name') AS display_name,
    JSONExtractString(state, 'price_book') AS price_book,
    JSONExtractString(state, 'currency') AS currency,
    JSONExtractString(state, 'timezone') AS timezone,
    fromUnixTimestamp64Micro(JSONExtractInt(state, 'created_at')) AS created,
    length(JSONExtractKeys(state, 'keys')) AS keys
FROM documents WHERE topic = 'accounts'
"""

# The hash of a key is no secret (256 random bits), but a question about keys has no use for it.
API_KEYS = f"""
CREATE OR REPLACE VIEW api_keys AS
SELECT tenant, pair.1 AS key_id,
    JSONExtractString(pair.2, 'user') AS user,
    JSONExtract(pair.2, 'scopes', 'Array(String)') AS scopes,
    {", ".join(f"JSONExtractString(pair.2, '{name}') AS {name}" for name in KEY_DIMENSIONS)},
    fromUnixTimestamp64Micro(JSONExtractInt(pair.2, 'issued_at')) AS issued,
    if(JSONExtractInt(pair.2, 'expires_at') = 0, NULL, fromUnixTimestamp64Micro(JSONExtractInt(pair.2, 'expires_at'))) AS expires,
    if(JSONExtractInt(pair.2, 'revoked_at') = 0, NULL, fromUnixTimestamp64Micro(JSONExtractInt(pair.2, 'revoked_at'))) AS revoked
FROM (
    SELECT key AS tenant, arrayJoin(JSONExtractKeysAndValuesRaw(state, 'keys')) AS pair
    FROM documents WHERE topic = 'accounts'
)
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
SELECT subject, pair.1 AS rule,
    JSONExtractString(pair.2, 'severity') AS severity,
    JSONExtractString(pair.2, 'message') AS message,
    JSONExtractString(pair.2, 'remedy') AS remedy,
    fromUnixTimestamp64Micro(JSONExtractInt(pair.2, 'raised_at')) AS raised,
    JSONExtractString(pair.2, 'producer') AS producer,
    JSONExtractString(pair.2, 'event_id') AS event_id
FROM (
    SELECT key AS subject, arrayJoin(JSONExtractKeysAndValuesRaw(state, 'open')) AS pair
    FROM documents WHERE topic = 'alerts'
)
"""

STATEMENTS = (HISTORY_ROWS, HISTORY, DOCUMENTS, CATALOG, CATALOG_HISTORY, TENANTS, API_KEYS, PRICE_BOOK, ALERTS)
"""In the order in which they must be made; each may be run again."""
