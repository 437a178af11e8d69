"""Recomputes a bill from Kafka by the rules of `docs/billing.md` and imports nothing of this project. For auditors, and to be copied.

    python -m examples.recompute_bill BROKER TENANT NUMBER

Prints the total and the digest of the issued bill beside those it computed; ends with 1 where they differ.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import confluent_kafka as ck
import fastavro

Body = dict[str, Any]
METERS = [
    "calls",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "bytes_in",
    "bytes_out",
    "images",
    "media_us",
    "gpu_us",
    "cpu_us",
]
KEY = ["model", "model_version", "provider", "meter", "book_version", "amount_per_micros", "per_units", "held"]
COUNTS = ["claimed", "carried", "copied", "conflicting", "duplicate", "voided", "unbilled", "retimed", "missing"]
PINS = ["tenant", "period", "number", "log_id", "until", "decided_position", "rating_version", "price_book", "currency", "producers_offset"]
DAY_US, WEEK_US, FIVE_MINUTES_US = 86_400_000_000, 7 * 86_400_000_000, 300_000_000
QUIET_S_MAX = 60
SCHEMA_OF_SCHEMAS = "schemas/schemas/SchemaRegistered.avsc"
"""Handed out with the log: it says how to read the schemas of all other records."""


class LogInvalid(Exception):
    """The log does not hold what the bill needs."""


class Record(NamedTuple):
    partition: int
    offset: int
    append_us: int
    value: bytes
    headers: Mapping[str, bytes]


def plain(schema: Any) -> Any:
    """The schema without its logical types: instants stay integers, µs UTC."""
    if isinstance(schema, dict):
        return {k: plain(v) for k, v in cast("Body", schema).items() if k != "logicalType"}
    return [plain(part) for part in cast("list[Any]", schema)] if isinstance(schema, list) else schema


class Log:
    def __init__(self, broker: str) -> None:
        self.consumer = ck.Consumer({"bootstrap.servers": broker, "group.id": "stranger", "enable.auto.commit": False})
        self.schemas = dict[int, tuple[str, Any]]()
        with open(SCHEMA_OF_SCHEMAS) as file:
            schema = fastavro.parse_schema(plain(json.load(file)))
        for record in self.read("schemas"):
            if record.headers.get("ce_type") == b"SchemaRegistered":
                body: Body = fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema, None)  # type: ignore[assignment]
                if hashlib.sha256(body["definition"].encode()).digest() == body["sha256"] and body["schema_id"] not in self.schemas:
                    name = body["subject"].rpartition("-")[2]
                    self.schemas[body["schema_id"]] = (name, fastavro.parse_schema(plain(json.loads(body["definition"]))))

    def partitions(self, topic: str) -> int:
        return len(self.consumer.list_topics(topic, timeout=10).topics[topic].partitions)

    def read(self, topic: str, partition: int | None = None, below: int | None = None) -> Iterator[Record]:
        """Every record, of one partition or of all, up to an offset or to the end that there was when reading began."""
        left = dict[int, int]()
        for p in range(self.partitions(topic)) if partition is None else (partition,):
            low, high = self.consumer.get_watermark_offsets(ck.TopicPartition(topic, p), timeout=10)
            if low < (end := high if below is None else min(high, below)):
                left[p] = end
        self.consumer.assign([ck.TopicPartition(topic, p, 0) for p in left])
        heard = time.monotonic()
        while left:
            message = self.consumer.poll(1)
            if message is None or message.error():
                if time.monotonic() - heard > QUIET_S_MAX:
                    raise LogInvalid(f"{topic}: nothing came for {QUIET_S_MAX} s")
                continue
            heard = time.monotonic()
            p, offset = message.partition() or 0, message.offset() or 0
            if p in left:
                if offset < left[p]:
                    headers = {k: v for k, v in message.headers() or [] if isinstance(v, bytes)}
                    yield Record(p, offset, message.timestamp()[1] * 1000, bytes(message.value() or b""), headers)  # type: ignore[arg-type]
                if offset >= left[p] - 1:
                    del left[p]

    def fact(self, record: Record) -> tuple[str, Body]:
        name, schema = self.schemas[int.from_bytes(record.value[1:5], "big")]
        return name, fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema, None)  # type: ignore[return-value]

    def decided(self, topic: str, below: int | None = None) -> Iterator[tuple[str, Body, int]]:
        """(fact, body, position) in the order of each partition's chain, each once."""
        at, waiting = defaultdict[int, tuple[str, int]](lambda: ("", 0)), defaultdict[int, list[Record]](list)
        last = defaultdict[tuple[int, bytes], int](int)  # (partition, store) → the last position: what is not above it is a copy
        for record in self.read(topic, None, below):
            if not {"store", "position", "previous"} <= record.headers.keys():
                continue
            queue = waiting[record.partition]
            queue.append(record)
            while (due := next((r for r in queue if self.follows(r, at[record.partition])), None)) is not None:
                queue.remove(due)
                position = int(due.headers["position"])
                at[record.partition] = (due.headers["store"].decode(), position)
                last[record.partition, due.headers["store"]] = position
                yield *self.fact(due), position
            waiting[record.partition] = [r for r in queue if int(r.headers["position"]) > last[r.partition, r.headers["store"]]]
        if any(waiting.values()) and below is None:
            raise LogInvalid(f"{topic}: a decided record waits for its predecessor")

    def follows(self, record: Record, at: tuple[str, int]) -> bool:
        store, previous = record.headers["store"].decode(), int(record.headers["previous"])
        if store == at[0]:
            return previous == at[1]
        name, body = self.fact(record)
        return (
            name == "StoreOpened" and previous == 0 and (body["previous_store"], body["previous_position"], body["store"]) == (*at, store)
        )


def partition_of(key: bytes, partitions: int) -> int:
    """murmur2, as in Kafka's clients."""
    mask, m, h = 0xFFFFFFFF, 0x5BD1E995, 0x9747B28C ^ len(key)
    for i in range(0, len(key) & ~3, 4):
        k = int.from_bytes(key[i : i + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ (k >> 24)) * m & mask)
    if rest := key[len(key) & ~3 :]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return ((h ^ (h >> 15)) & 0x7FFFFFFF) % partitions


class Statement:
    """What a tenant owes for the records below a cut, before an instant."""

    def __init__(
        self, records: list[tuple[Record, str, Body]], cut: Body, excluded: set[int], price: Callable[[int, Body, str], tuple[int, ...]]
    ) -> None:
        self.quantities, self.counts = defaultdict[tuple[Any, ...], int](int), dict.fromkeys(COUNTS, 0)
        ends = {c["partition"]: c["offset"] for c in cut["cuts"]}
        known = [(r, name, b) for r, name, b in records if r.offset < ends.get(r.partition, 0) and r.offset not in excluded]
        voided = {b["voided"] for _, name, b in known if name == "InvocationVoided"}
        seen, billed, epochs = dict[str, bytes](), defaultdict[bytes, list[int]](list), dict[str, list[int]]()
        for record, name, body in known:
            if (first := seen.setdefault(body["event_id"], record.value)) is not record.value:
                self.counts["copied" if first == record.value else "conflicting"] += 1
                continue
            epochs.setdefault(body["epoch"], []).append(body["sequence"])
            own, append = body["occurred_at"], record.append_us
            effective = own if append - WEEK_US <= own <= append + FIVE_MINUTES_US else append
            if name != "InvocationSettled" or body["outcome"] != "succeeded" or body["shadow"]:
                self.counts["unbilled"] += 1
            elif body["event_id"] in voided:
                self.counts["voided"] += 1
            elif (key := body["invocation_key"]) and any(abs(effective - at) < DAY_US for at in billed[key]):
                self.counts["duplicate"] += 1
            else:
                billed[key].append(effective)
                self.counts["retimed"] += effective != own
                self.counts["claimed" if effective < cut["until"] else "carried"] += 1
                if effective < cut["until"]:
                    for meter in METERS:
                        if quantity := body.get(meter, 1 if meter == "calls" else 0):
                            self.quantities[
                                body["model"], body["model_version"], body["provider"], meter, *price(effective, body, meter)
                            ] += quantity
        self.epochs = set(epochs)
        self.counts["missing"] = sum(max(0, max(sequences) - len(sequences)) for sequences in epochs.values())

    def amount(self, key: tuple[Any, ...]) -> int:
        *_, amount, units, _ = key
        return (2 * self.quantities.get(key, 0) * amount + units) // (2 * units)


def price_in(versions: list[Body]) -> Callable[[int, Body, str], tuple[int, ...]]:
    """(book_version, amount, units, held) of a meter of a usage fact at an instant."""

    def price(effective: int, usage: Body, meter: str) -> tuple[int, ...]:
        begun = [v for v in versions if v["effective_from"] <= effective]
        if not begun:
            return 0, 0, 1, True
        version = max(begun, key=lambda v: (v["effective_from"], v["book_version"]))
        prices = {(p["model"], p["meter"]): p for p in version["prices"]}
        found = prices.get((usage["model"], meter)) or prices.get(("*", meter))
        return (
            (version["book_version"], found["amount_micros"], found["per_units"], False) if found else (version["book_version"], 0, 1, True)
        )

    return price


def recompute(log: Log, tenant: str, number: int) -> tuple[Body, Body]:
    """(the body of the issued bill, the bill as computed here)."""
    cuts, issued = dict[int, Body](), dict[int, Body]()
    for name, body, _ in log.decided("bills"):
        if body.get("tenant") == tenant and name in ("BillCutFixed", "BillIssued"):
            (cuts if name == "BillCutFixed" else issued)[body["number"]] = body
    if number not in issued:
        raise LogInvalid(f"bill {number} of {tenant} is not issued; there are {sorted(issued)}")
    excluded = {n: set(issued[n]["excluded"]) if n in issued else set[int]() for n in (number - 1, number)}
    partition = partition_of(tenant.encode(), log.partitions("usage"))
    end = max(c["offset"] for n in excluded if n in cuts for c in cuts[n]["cuts"] if c["partition"] == partition)
    records = usage_of(log, tenant, partition, end, excluded[number] | excluded[number - 1])
    publications = [(b, position) for name, b, position in log.decided("prices") if name == "PriceBookPublished"]

    def statement(n: int) -> Statement:
        cut: Body = cuts[n] if n else {"cuts": [], "until": 0, "price_book": "", "decided_position": 0}
        versions = [b for b, position in publications if b["book"] == cut["price_book"] and position <= cut["decided_position"]]
        return Statement(records, cut, excluded[n], price_in(versions))

    now, before = statement(number), statement(number - 1)
    bill = bill_of(cuts[number], now, before) | {"producers_open": len(now.epochs - epochs_ended(log, cuts[number]["producers_offset"]))}
    if excluded[number]:
        bill |= {"records_written_off": len(excluded[number]), "excluded": sorted(excluded[number])}
    return issued[number], bill


def usage_of(log: Log, tenant: str, partition: int, end: int, excluded: set[int]) -> list[tuple[Record, str, Body]]:
    """The tenant's records below an offset, in the order of the log."""
    found = list[tuple[Record, str, Body]]()
    for record in log.read("usage", partition, end):
        try:
            name, body = log.fact(record)
        except Exception as e:
            if record.offset in excluded:
                continue
            raise LogInvalid(f"usage/{partition}/{record.offset} cannot be read, and no bill excludes it: {e}") from e
        if body["tenant"] == tenant:
            found.append((record, name, body))
    return found


def epochs_ended(log: Log, below: int) -> set[str]:
    """The producer epochs that were closed or given up below an offset of topic `producers`."""
    ended = {str(body["epoch"]) for name, body, _ in log.decided("producers", below) if name == "ProducerWrittenOff"}
    for record in log.read("producers", 0, below):
        try:
            name, body = log.fact(record)
        except Exception:  # unreadable bytes end no epoch
            continue
        if name == "ProducerClosed":
            ended.add(str(body["epoch"]))
    return ended


def bill_of(cut: Body, now: Statement, before: Statement) -> Body:
    """The difference of two statements, and what the cut pins."""
    lines = list[Body]()
    for key in sorted(now.quantities.keys() | before.quantities.keys()):
        quantity, amount = now.quantities.get(key, 0) - before.quantities.get(key, 0), now.amount(key) - before.amount(key)
        if quantity or amount:
            lines.append(dict(zip(KEY, key, strict=True)) | {"quantity": quantity, "amount_micros": amount})
    return {name: cut[name] for name in PINS} | {
        "cut_event_id": cut["event_id"],
        "cuts": sorted([c["partition"], c["offset"]] for c in cut["cuts"]),
        "previous_bill_sha256": cut["previous_bill_sha256"].hex(),
        "lines": lines,
        "total_micros": sum(line["amount_micros"] for line in lines),
        "facts": now.counts | {"claimed": now.counts["claimed"] - before.counts["claimed"]},
    }


def main(broker: str, tenant: str, number: str) -> int:
    issued, bill = recompute(Log(broker), tenant, int(number))
    canonical = json.dumps(bill, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    print(f"issued   {issued['total_micros']} micro-{issued['currency']}  {issued['digest'].hex()}")
    print(f"computed {bill['total_micros']} micro-{bill['currency']}  {digest}")
    return 0 if digest == issued["digest"].hex() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
