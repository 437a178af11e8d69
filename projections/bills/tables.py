"""The tables of bills: running ones, recomputed while usage comes in, and issued ones, as the log has them."""

from __future__ import annotations

RUNNING = """
CREATE TABLE IF NOT EXISTS bills_running_rows (
    tenant String,
    period LowCardinality(String),
    generation Int64 COMMENT 'grows with each recomputation; lines older than it are gone',
    number Int64 COMMENT 'the bill this would become',
    currency LowCardinality(String),
    total_micros Int64,
    usage_partition Int32,
    usage_offset Int64 COMMENT 'facts at or past it are not in it yet',
    until_us Int64 COMMENT 'facts at or past this instant are left to later bills',
    price_book String,
    decided_position Int64 COMMENT 'what is decided later, on prices or held usage, is not in it yet',
    facts Map(String, Int64)
) ENGINE = ReplacingMergeTree(generation) ORDER BY (tenant, period)
"""

RUNNING_LINES = """
CREATE TABLE IF NOT EXISTS bill_lines_running_rows (
    tenant String,
    period LowCardinality(String),
    generation Int64,
    model String,
    model_version String,
    provider String,
    meter LowCardinality(String),
    book_version Int64,
    amount_per_micros Int64,
    per_units Int64,
    held Bool,
    quantity Int64,
    amount_micros Int64
) ENGINE = ReplacingMergeTree(generation)
ORDER BY (tenant, period, model, model_version, provider, meter, book_version, amount_per_micros, per_units, held)
"""

# Of a tenant's running bills only the newest runs: the others' months are over, and what was in them is in it. One whose number
# has been issued meanwhile runs no more, even before it is recomputed.
RUNNING_NEWEST = """
CREATE OR REPLACE VIEW bills_running AS
SELECT * FROM (SELECT * FROM bills_running_rows FINAL ORDER BY generation DESC LIMIT 1 BY tenant)
WHERE (tenant, number) NOT IN (SELECT key, JSONExtractInt(body, 'number') FROM history WHERE topic = 'bills' AND fact = 'BillIssued')
"""

# A bill that was issued is fixed on the log; what runs is what the next one would say.
BILLS = """
CREATE OR REPLACE VIEW bills AS
SELECT 'issued' AS status, key AS tenant,
    JSONExtractString(body, 'period') AS period,
    JSONExtractInt(body, 'number') AS number,
    JSONExtractString(body, 'currency') AS currency,
    JSONExtractInt(body, 'total_micros') AS total_micros,
    JSONExtractString(body, 'digest') AS digest,
    valid_from AS at,
    JSONExtract(body, 'facts', 'Map(String, Int64)') AS facts,
    JSONExtractInt(body, 'producers_open') AS producers_open,
    JSONExtractInt(body, 'records_written_off') AS records_written_off
FROM history WHERE topic = 'bills' AND fact = 'BillIssued'
UNION ALL
SELECT 'running', tenant, period, number, currency, total_micros, '', fromUnixTimestamp64Micro(generation), facts, 0, 0
FROM bills_running
"""

BILL_LINES = """
CREATE OR REPLACE VIEW bill_lines AS
SELECT 'issued' AS status, tenant, period, number,
    JSONExtractString(line, 'model') AS model,
    JSONExtractString(line, 'model_version') AS model_version,
    JSONExtractString(line, 'provider') AS provider,
    JSONExtractString(line, 'meter') AS meter,
    JSONExtractInt(line, 'book_version') AS book_version,
    JSONExtractInt(line, 'amount_per_micros') AS amount_per_micros,
    JSONExtractInt(line, 'per_units') AS per_units,
    JSONExtractBool(line, 'held') AS held,
    JSONExtractInt(line, 'quantity') AS quantity,
    JSONExtractInt(line, 'amount_micros') AS amount_micros
FROM (
    SELECT key AS tenant, JSONExtractString(body, 'period') AS period, JSONExtractInt(body, 'number') AS number,
        arrayJoin(JSONExtractArrayRaw(body, 'lines')) AS line
    FROM history WHERE topic = 'bills' AND (fact = 'BillIssued' OR (fact = 'BillLinesListed' AND (key, JSONExtractInt(body, 'number')) IN (
        SELECT key, JSONExtractInt(body, 'number') FROM history WHERE topic = 'bills' AND fact = 'BillIssued')))
)
UNION ALL
SELECT 'running', l.tenant, l.period, r.number, l.model, l.model_version, l.provider, toString(l.meter), l.book_version, l.amount_per_micros, l.per_units,
    l.held, l.quantity, l.amount_micros
FROM (SELECT * FROM bill_lines_running_rows FINAL) AS l
INNER JOIN bills_running AS r ON l.tenant = r.tenant AND l.period = r.period
WHERE l.generation >= r.generation
"""

STATEMENTS = (RUNNING, RUNNING_LINES, RUNNING_NEWEST, BILLS, BILL_LINES)
"""In the order in which they must be made, after those of `history_tables`; each may be run again."""
