"""The table `usage`: one row for every record of the topic, in the fact's own words, and the SQL that fills it from Avro.

One wide table for all facts of the topic, so that "every offset exactly once" is a property of one table (K6). What no reader could
understand has a row too: a tombstone with `readable = 0`. Columns are declared once, here; table, insert and comments come from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from events.facts.accounts import KEY_DIMENSIONS
from events.facts.meters import READINGS
from projections.ingest.avro_container import TAIL, TAIL_FIELD

OFFSETS_PER_PARTITION = 10_000_000
"""A ClickHouse partition holds this many offsets of one Kafka partition; chunks are split there, so one insert is one part (K7)."""
# A producer's clock may claim any 64-bit instant; most clients break on a date they cannot hold.
OCCURRED = "fromUnixTimestamp64Micro(greatest(-2208988800000000, least(occurred_at, 10413791999999999)), 'UTC')"
GUARD_SETTING = "log_comment"
"""A text that a client may set, and that changes nothing else."""
UNREADABLE = "Unreadable"
"""`fact` of a tombstone."""
_TABLE_SETTINGS = {
    "non_replicated_deduplication_window": 1000,
    # Sixty columns in files of their own are 120 files a part, and a file system pays for each when it is made and deleted: what an
    # insert makes keeps its columns in one file. Larger parts are wide, since only those merge column by column.
    "min_bytes_for_wide_part": 32 << 20,
    # Above it the engine deletes merged parts with 128 threads, which then wait for each other at one folder, and every insert with them.
    "concurrent_part_removal_threshold": 1_000_000,
    "merge_selector_base": 10,  # a row is written again at each tenfold growth, not at each fivefold
}


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a fact, as a column. `cast` turns what Avro brought (`{}`) into the column's type."""

    name: str
    type: str
    comment: str
    cast: str = "{}"
    text: bool = False
    """Must be valid UTF-8."""
    count: bool = False
    """Must not be negative."""


def _word(name: str, comment: str) -> Column:
    return Column(name, "LowCardinality(String)", comment, text=True)


def _text(name: str, comment: str) -> Column:
    return Column(name, "String", comment, text=True)


def _count(name: str, comment: str) -> Column:
    return Column(name, "UInt64", comment, count=True)


COLUMNS: tuple[Column, ...] = (
    Column("event_id", "UUID", "Identity of the execution; every copy of a fact has the same", "toUUIDOrZero({})", text=True),
    Column("occurred_at", "Int64", "When it happened by the producer's clock, microseconds since 1970 UTC"),
    _word("producer", "Who wrote the fact"),
    _text("causation_id", "What led to it"),
    _text("correlation_id", "The request it belongs to, through all parts"),
    _word("tenant", "Who called, and pays; '-' when no key was recognised"),
    _word("epoch", "The producer's run"),
    _count("sequence", "Place in the chain of (epoch, tenant), from 1"),
    Column("previous_sha256", "FixedString(32)", "SHA-256 of the framed record before it in that chain"),
    Column("invocation_key", "String", "SHA-256 over tenant, Idempotency-Key, operation and body; empty without a key"),
    *(_word(name, "Dimension of the API key") for name in KEY_DIMENSIONS),
    _word("key_id", "The API key"),
    _word("user", "Pseudonym of the user"),
    _word("region", "Region of the edge"),
    Column("labels", "Map(LowCardinality(String), String)", "Declared labels of the call", text=True),
    _word("provider", "Tenant who offers the model"),
    _word("model", "Model id"),
    _word("model_version", "Model version"),
    _word("deployment", "Deployment that answered"),
    _word("replica", "Replica that answered"),
    _word("route", "Route that led there"),
    _word("operation", "What was asked for"),
    _count("attempt", "1 = first try"),
    _word("outcome", "succeeded, client_error, failed, timed_out, aborted; words may be added"),
    _count("status", "HTTP status"),
    _word("error_code", "Code of the problem document, empty on success"),
    Column("streamed", "Bool", "The answer was a stream"),
    Column("shadow", "Bool", "A copy of the traffic to try a version: never billed"),
    Column("cached", "Bool", "Answered from the cache"),
    *(_count(name, f"Meter: {reading.meaning}") for name, reading in READINGS.items()),
    _count("queue_us", "Time in queues, microseconds"),
    _count("ttft_us", "Time to the first token, microseconds"),
    _count("latency_us", "Time from request to answer, microseconds"),
    _count("batch_size", "Calls in the batch it was answered in"),
    _text("slice_id", "Budget slice it was reserved from"),
    _count("price_version", "Price version frozen at reservation"),
    _count("reserved_micros", "Budget reserved, micro-units"),
    _count("output_tokens_max", "Opened: cap of output tokens"),
    Column("opened", "UUID", "Abandoned: event_id of the opened fact", "toUUIDOrZero({})", text=True),
    Column("voided", "UUID", "Voided: event_id of the settled fact that is not billed", "toUUIDOrZero({})", text=True),
    _word("reason", "Abandoned, voided: why"),
    _count("count", "Refused: how many calls within one second"),
)
_BY_NAME = {c.name: c for c in COLUMNS}

LOG_COLUMNS: tuple[Column, ...] = (
    Column("fact", "LowCardinality(String)", "Kind of fact; Unreadable for a tombstone"),
    Column("readable", "UInt8", "0 = tombstone: nobody could read the record, see dead_letters"),
    Column("kafka_partition", "Int32", "Partition of topic usage"),
    Column("kafka_offset", "UInt64", "Offset in it; with the partition the row's identity"),
    Column("kafka_time_us", "Int64", "When the broker appended it, microseconds since 1970 UTC"),
    Column("schema_id", "UInt32", "Writer's schema"),
    Column("sha256", "FixedString(32)", "SHA-256 of the framed record: what bills and receipts prove"),
)


def create_table(table: str) -> str:
    columns = [f"    `{c.name}` {c.type} COMMENT '{c.comment.replace(chr(39), chr(92) + chr(39))}'" for c in (*LOG_COLUMNS, *COLUMNS)]
    columns += [
        f"    `occurred` DateTime64(6, 'UTC') ALIAS {OCCURRED} COMMENT 'occurred_at as a date, between 1900 and 2299'",
        "    `appended` DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(kafka_time_us, 'UTC') COMMENT 'kafka_time_us as a date'",
    ]
    # A readable row wins over a tombstone of the same offset: a dead letter may be redriven.
    return f"""
CREATE TABLE IF NOT EXISTS {table} (
{("," + chr(10)).join(columns)}
) ENGINE = ReplacingMergeTree(readable)
PARTITION BY (kafka_partition, intDiv(kafka_offset, {OFFSETS_PER_PARTITION}))
ORDER BY (kafka_partition, kafka_offset)
SETTINGS {", ".join(f"{k} = {v}" for k, v in _TABLE_SETTINGS.items())}
COMMENT 'Raw usage: one row per record of topic usage; a paused worker may write a row twice, so read usage_rows'
"""


def alter_settings(table: str) -> str:
    """A table that was created before has these settings from now on."""
    return f"ALTER TABLE {table} MODIFY SETTING {', '.join(f'{k} = {v}' for k, v in _TABLE_SETTINGS.items())}"


# --- from Avro to rows

_PLAIN = {"string": "String", "bytes": "String", "long": "Int64", "int": "Int64", "boolean": "Bool"}


class UnsuitableSchema(Exception):
    """The writer's schema has a field of a type this table cannot take."""


@dataclass(frozen=True, slots=True)
class Insert:
    """How records of one writer's schema come in. The guard of a container comes as the setting GUARD_SETTING, in hexadecimal, so that the
    statement is always the same text, which the server parses once."""

    columns: str
    values: str
    structure: str
    fact: str
    schema_id: int

    def sql(self, table: str) -> str:
        # Parsing into LowCardinality columns is 2.4 times slower than letting the SELECT cast whole blocks of plain types.
        return f"INSERT INTO {table} ({self.columns}) SELECT {self.values} FROM input('{self.structure}') FORMAT Avro"


def insert_for(schema_id: int, definition: str) -> Insert:
    """For a writer's schema: unknown fields are left out, missing ones take the column's default."""
    schema = cast(dict[str, Any], json.loads(definition))
    fields = {str(f["name"]): _plain(str(f["name"]), f["type"]) for f in schema["fields"]}
    known = [(_BY_NAME[name], plain) for name, plain in fields.items() if name in _BY_NAME]
    structure = ", ".join(f"`{c.name}` {plain}" for c, plain in known) + f", `{TAIL_FIELD}` FixedString({TAIL.size})"
    tail = f"{TAIL_FIELD}"
    checks = " OR ".join(
        (
            f"substring({tail}, 53, 16) != unhex(getSetting('{GUARD_SETTING}'))",
            *_negative([c for c, _ in known]),
            *_bad_text([(c, plain) for c, plain in known]),
            *_not_canonical(fields),
        )
    )
    values = {
        "fact": f"'{schema['name']}'",
        "readable": "1",
        "kafka_partition": f"reinterpretAsInt32(substring({tail}, 1, 4))",
        # The check stands in a column that is needed, so that nothing may optimise it away.
        "kafka_offset": f"reinterpretAsUInt64(substring({tail}, 5, 8)) + throwIf({checks}, 'guard')",
        "kafka_time_us": f"reinterpretAsInt64(substring({tail}, 13, 8)) * 1000",
        "schema_id": str(schema_id),
        "sha256": f"toFixedString(substring({tail}, 21, 32), 32)",
        **{c.name: c.cast.format(f"`{c.name}`") for c, _ in known},
    }
    columns = ", ".join(f"`{name}`" for name in values)
    return Insert(columns, ", ".join(values.values()), structure, str(schema["name"]), schema_id)


def _negative(columns: list[Column]) -> list[str]:
    """The sign bit of all counts at once."""
    counts = [f"`{c.name}`" for c in columns if c.count]
    joined = counts[0] if counts else ""
    for c in counts[1:]:
        joined = f"bitOr({joined}, {c})"
    return [f"{joined} < 0"] if counts else []


def _not_canonical(fields: Mapping[str, str]) -> list[str]:
    """Two spellings of one id would be one event in the table and two for readers of the log."""
    return ["toString(toUUIDOrZero(event_id)) != event_id"] if "event_id" in fields else []


def _bad_text(columns: list[tuple[Column, str]]) -> list[str]:
    """One validation over all texts, kept apart by zero bytes so that two halves never make a whole."""
    texts = [
        f"arrayStringConcat(arrayConcat(mapKeys(`{c.name}`), mapValues(`{c.name}`)), '\\0')" if plain.startswith("Map") else f"`{c.name}`"
        for c, plain in columns
        if c.text
    ]
    return [f"NOT isValidUTF8(concat({', '.join(x for t in texts for x in (t, repr(chr(0)).replace('x00', '0')))}))"] if texts else []


def _plain(name: str, avro: Any) -> str:
    if isinstance(avro, str) and avro in _PLAIN:
        return _PLAIN[avro]
    if isinstance(avro, str) and avro.rpartition(".")[2] == "Fixed32":
        return "FixedString(32)"
    if isinstance(avro, dict):
        typed = cast(Mapping[str, Any], avro)
        match typed["type"]:
            case "fixed":
                return f"FixedString({typed['size']})"
            case "map" if typed["values"] == "string":
                return "Map(String, String)"
            case "string" | "long" | "int":
                return _PLAIN[typed["type"]]
            case _:
                pass
    if name not in _BY_NAME:
        return ""  # not ours: ClickHouse skips it
    raise UnsuitableSchema(f"{name}: {avro}")
