"""`modelmarket log`, `topics` and `schemas`: look at the log as it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from cli.failures import explained_failures
from cli.tables import table
from events.facts.topics import TOPICS, entries
from events.log.client import Reader, Writer
from events.log.record import Coordinate, Record
from events.log.registry_restore import restore
from events.log.schemas import publish, read_schemas, registry_drift, schemas_on_log
from events.log.topic_admin import TAKEN_AWAY, apply_access, apply_topics, check_partitions, topic_drift
from events.process.passwords import as_set_up
from events.process.settings import Settings
from events.schema.codec import Codec, Undecodable, todays_schemas
from events.schema.examples import add_examples, undecodable_examples
from events.schema.folder import folder_drift, write_folder
from events.schema.registry import SchemaRegistry

log = typer.Typer(help="Read the log.", no_args_is_help=True)
topics = typer.Typer(help="The topics of the topic table.", no_args_is_help=True)
schemas = typer.Typer(help="Schemas of the facts: class, file, registry and log agree.", no_args_is_help=True)
console = Console()
QUIET_S = 0.5
"""With -f, how long one question to Kafka waits for a record, and so how soon Ctrl-C is heard."""


@log.command("tail")
def tail(
    topic: Annotated[str, typer.Argument(help="One of: " + ", ".join(TOPICS))],
    count: Annotated[int, typer.Option("-n", help="How many of the newest records to begin with, per partition.", min=0)] = 10,
    follow: Annotated[bool, typer.Option("-f", help="Follow: print new records until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Print decoded facts with their coordinate, oldest first."""
    if topic not in TOPICS:
        raise typer.BadParameter(f"{topic!r} is no topic; there are {', '.join(TOPICS)}")
    with explained_failures():
        reader = Reader(Settings(), "tail")
        schemas, _ = read_schemas(reader)
        codec = Codec(schemas)
        newest = sorted(_newest_records(reader, topic, count), key=lambda r: (r.timestamp, r.partition, r.offset))
        for record in itertools.chain(newest, _new_records(reader, topic) if follow else ()):
            _show(record, codec, as_json)


def _newest_records(reader: Reader, topic: str, count: int) -> Iterator[Record]:
    start = {p: max(low, high - count) for (_, p), (low, high) in reader.bounds(topic).items()}
    yield from reader.read(topic, start)


def _new_records(reader: Reader, topic: str) -> Iterator[Record]:
    reader.assign(reader.end_offsets(topic))
    while True:
        yield from reader.poll(timeout_s=QUIET_S)


def decoded(record: Record, codec: Codec) -> tuple[str, dict[str, Any]]:
    """(name, body) of a record, or what is wrong with it."""
    try:
        if record.topic == "heartbeats":
            document = json.loads(record.value or b"{}")
            return "Heartbeat", document if isinstance(document, dict) else {"not_an_object": document}
        return codec.decode(record.value)
    except ValueError as e:
        return "unreadable", {"code": "not_json", "reason": str(e), "bytes": len(record.value or b"")}
    except Undecodable as e:
        return "unreadable", {"code": e.code, "reason": e.reason, "bytes": len(record.value or b"")}


def _show(record: Record, codec: Codec, as_json: bool) -> None:
    name, body = decoded(record, codec)
    at = Coordinate(record.topic, record.partition, record.offset)
    if as_json:
        console.print_json(json.dumps({"at": str(at), "time_ms": record.timestamp, "fact": name, "body": body}, default=_hex), indent=None)
        return
    when = datetime.fromtimestamp(record.timestamp / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    rest = {
        k: v
        for k, v in body.items()
        if k not in ("event_id", "occurred_at", "producer", "causation_id", "correlation_id") and v not in ("", {}, [], 0, b"")
    }
    text = json.dumps(rest, default=_hex, ensure_ascii=False)
    style = "red" if name == "unreadable" else "bold"
    console.print(f"[dim]{when} {at}[/] [{style}]{name}[/] ", end="")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _hex(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@topics.command("apply")
def topics_apply() -> None:
    """Create missing topics, tell the brokers who may use them, and report every difference from the topic table; exit 1 when there is one."""
    settings = as_set_up(Settings())
    with explained_failures():
        for name in apply_topics(settings):
            console.print(f"created {name}")
        changed = apply_access(settings)
        drift = topic_drift(settings)
    taken = [change for change in changed if change.startswith(TAKEN_AWAY)]
    if changed:
        console.print(f"{len(changed) - len(taken)} rights granted, as the table of roles says")
    for line in taken:
        console.print(line, highlight=False, markup=False)
    for line in drift:
        console.print(f"[red]drift[/] {line}")
    if drift:
        raise typer.Exit(1)
    console.print(f"{len(TOPICS)} topics as the topic table says")


@topics.command("list")
def topics_list() -> None:
    """The table of topics."""
    listed = table("topic", "partitions", "retention", "kind", "written by", "key", whole=["topic"])
    for t in TOPICS.values():
        listed.add_row(
            t.name, str(t.partitions), "for ever" if t.retention_ms < 0 else f"{t.retention_ms // 3_600_000} h", t.kind, t.owner, t.key
        )
    console.print(listed)


@schemas.command("generate")
def schemas_generate() -> None:
    """Write schemas/<topic>/<fact>.avsc from the classes, and keep an example of each new one."""
    for path in write_folder() + add_examples():
        console.print(f"wrote {path.parent.name}/{path.name}")


@schemas.command("publish")
def schemas_publish() -> None:
    """Register today's schemas and record new ids on the log."""
    settings = as_set_up(Settings())
    with explained_failures():
        writer, reader = Writer(settings, "schemas"), Reader(settings, "schemas")
        for subject in publish(settings, writer, reader):
            console.print(f"published {subject}")
        writer.close()


@schemas.command("restore")
def schemas_restore() -> None:
    """Fill an EMPTY registry with the log's schemas under their own ids, after the registry's data was lost."""
    settings = Settings()
    with explained_failures():
        reader = Reader(settings, "schemas-restore")
        restored = restore(settings, reader)
        reader.close()
    console.print(f"restored {len(restored)} schemas under the ids of the log")


@schemas.command("check")
def schemas_check(
    offline: Annotated[bool, typer.Option(help="Only class, file and examples; no registry, no log.")] = False,
) -> None:
    """Fail when class, file, registry and log differ, or an old example does not decode."""
    drift = folder_drift() + undecodable_examples()
    if not offline:
        with explained_failures():
            drift += _online_drift()
    for line in drift:
        console.print(f"[red]drift[/] {line}")
    if drift:
        raise typer.Exit(1)
    console.print(
        f"{len(todays_schemas())} schemas agree" + (" (class, file, examples)" if offline else " (class, file, examples, registry, log)")
    )


def _online_drift() -> list[str]:
    settings = Settings()
    check_partitions(settings)
    reader = Reader(settings, "schemas-check")
    recorded = schemas_on_log(reader)
    reader.close()
    texts = {(s.subject, s.definition) for s in recorded}
    drift = [
        f"{subject}: today's class is not on the log; run `modelmarket schemas publish`"
        for subject, definition in todays_schemas().items()
        if (subject, definition) not in texts
    ]
    return drift + registry_drift(SchemaRegistry(settings), recorded)


@schemas.command("list")
def schemas_list() -> None:
    """Every fact: its topic, its name and what it means."""
    listed = table("topic", "fact", "kind", "what it means", whole=["topic", "fact"])
    for entry in entries():
        listed.add_row(entry.topic, entry.name, entry.cls.kind, " ".join((entry.cls.__doc__ or "").split()))
    console.print(listed)
