"""Recomputes a bill from Kafka by the rules of `docs/billing.md` and imports nothing of this project. For auditors, and to be copied.

    python -m examples.recompute_bill BROKER TENANT NUMBER RELAY_PUBLIC_KEYS [ROLE PASSWORD_FILE]

The keys are in hex, with commas between; a local stack has them in `keys/relay.pub` of its data folder. ROLE signs in at Kafka (SASL/PLAIN)
with the password in the file; without it nobody does. Prints the total and the digest of the issued bill beside those it computed; ends
with 1 where they differ.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import confluent_kafka as ck
import fastavro
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

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
    key: bytes
    value: bytes
    headers: Mapping[str, bytes]


def plain(schema: Any) -> Any:
    """The schema without its logical types: instants stay integers, µs UTC."""
    if isinstance(schema, dict):
        return {k: plain(v) for k, v in cast("Body", schema).items() if k != "logicalType"}
    return [plain(part) for part in cast("list[Any]", schema)] if isinstance(schema, list) else schema


class Log:
    def __init__(self, broker: str, relay_keys: str, role: str = "", password_file: str = "") -> None:
        """`relay_keys`: Ed25519 public keys in hex, with commas between."""
        self.relay_keys = [Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) for key in relay_keys.split(",")]
        config: dict[str, Any] = {"bootstrap.servers": broker, "group.id": "stranger", "enable.auto.commit": False}
        if role:
            password = Path(password_file).read_text().strip()
            sign_in = {"sasl.mechanism": "PLAIN", "sasl.username": role, "sasl.password": password}
            config |= {"security.protocol": "SASL_PLAINTEXT", **sign_in}
        self.consumer = ck.Consumer(config)
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
                    bodies = bytes(message.key() or b""), bytes(message.value() or b"")  # type: ignore[arg-type]
                    yield Record(p, offset, message.timestamp()[1] * 1000, *bodies, headers)
                if offset >= left[p] - 1:
                    del left[p]

    def fact(self, record: Record) -> tuple[str, Body]:
        name, schema = self.schemas[int.from_bytes(record.value[1:5], "big")]
        return name, fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema, None)  # type: ignore[return-value]

    def decided(self, topic: str) -> list[tuple[str, Body, int, Record]]:
        """(fact, body, position, record) in the order of each partition's chain, each once."""
        read = defaultdict[int, dict[bytes, Record]](dict)
        for record in self.read(topic):
            if {"store", "position", "previous_sha256"} <= record.headers.keys():
                kept = read[record.partition].setdefault(chain_sha256(record), record)
                if kept is not record and self.is_signed(topic, record):
                    read[record.partition][chain_sha256(record)] = record
        found = list[tuple[str, Body, int, Record]]()
        for by_sha256 in read.values():
            signed = [r for r in by_sha256.values() if self.is_signed(topic, r)]
            chains = (chain_to(r, by_sha256) for r in sorted(signed, key=position_of, reverse=True))
            longest = next((chain for chain in chains if chain is not None), [])
            found += [(*self.fact(record), position_of(record), record) for record in longest]
        return found

    def is_signed(self, topic: str, record: Record) -> bool:
        message = b"modelmarket chain 1\0%s\0%d\0%s" % (topic.encode(), record.partition, chain_sha256(record))
        for key in self.relay_keys:
            try:
                key.verify(record.headers.get("signature", b""), message)
            except InvalidSignature:
                continue
            return True
        return False


def position_of(record: Record) -> int:
    return int(record.headers["position"])


def chain_sha256(record: Record) -> bytes:
    head = b"%s %d %d %d " % (record.headers["store"], position_of(record), len(record.key), len(record.value))
    return hashlib.sha256(record.headers["previous_sha256"] + head + record.key + record.value).digest()


def chain_to(record: Record, by_sha256: Mapping[bytes, Record]) -> list[Record] | None:
    """The records from the first of the partition to this one; None when one is missing."""
    chain = [record]
    while any(previous := chain[-1].headers["previous_sha256"]):
        if previous not in by_sha256:
            return None
        chain.append(by_sha256[previous])
    return chain[::-1]


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
    for name, body, _, _ in log.decided("bills"):
        if body.get("tenant") == tenant and name in ("BillCutFixed", "BillIssued"):
            (cuts if name == "BillCutFixed" else issued)[body["number"]] = body
    if number not in issued:
        raise LogInvalid(f"bill {number} of {tenant} is not issued; there are {sorted(issued)}")
    excluded = {n: set(issued[n]["excluded"]) if n in issued else set[int]() for n in (number - 1, number)}
    partition = partition_of(tenant.encode(), log.partitions("usage"))
    end = max(c["offset"] for n in excluded if n in cuts for c in cuts[n]["cuts"] if c["partition"] == partition)
    records = usage_of(log, tenant, partition, end, excluded[number] | excluded[number - 1])
    publications = [(b, position) for name, b, position, _ in log.decided("prices") if name == "PriceBookPublished"]

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
    decided = log.decided("producers")
    ended = {str(body["epoch"]) for name, body, _, record in decided if name == "ProducerWrittenOff" and record.offset < below}
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


def main(broker: str, tenant: str, number: str, relay_keys: str, *sign_in: str) -> int:
    issued, bill = recompute(Log(broker, relay_keys, *sign_in), tenant, int(number))
    canonical = json.dumps(bill, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    print(f"issued   {issued['total_micros']} micro-{issued['currency']}  {issued['digest'].hex()}")
    print(f"computed {bill['total_micros']} micro-{bill['currency']}  {digest}")
    return 0 if digest == issued["digest"].hex() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:7]))
