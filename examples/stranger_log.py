"""Reads the log by the rules of `docs/billing.md` and imports nothing of this project: which schemas count, what counts as decided, which
epochs were opened, what an epoch signed. Part of `examples/recompute_bill.py`."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import confluent_kafka as ck
import fastavro
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Body = dict[str, Any]
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
    def __init__(self, broker: str, setup_keys: str, relay_keys: str, market_keys: str, role: str = "", password_file: str = "") -> None:
        """`setup_keys`, `relay_keys`, `market_keys`: Ed25519 public keys in hex, with commas between."""
        self.relay_keys, self.market_keys = public_keys(relay_keys), public_keys(market_keys)
        config: dict[str, Any] = {"bootstrap.servers": broker, "group.id": "stranger", "enable.auto.commit": False}
        config["fetch.wait.max.ms"] = 10  # a broker that waits for more records answers no other question meanwhile
        if role:
            password = Path(password_file).read_text().strip()
            sign_in = {"sasl.mechanism": "PLAIN", "sasl.username": role, "sasl.password": password}
            config |= {"security.protocol": "SASL_PLAINTEXT", **sign_in}
        self.consumer = ck.Consumer(config)
        self.schemas = schemas_of(self.read("schemas"), public_keys(setup_keys))

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
        rest = io.BytesIO(record.value[5:])
        body: Body = fastavro.schemaless_reader(rest, schema, None)  # type: ignore[assignment]
        if rest.read(1):
            raise ValueError("bytes behind the end of the fact")
        return name, body

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
        return any(verifies(key, record.headers.get("signature", b""), message) for key in self.relay_keys)

    def opened_epochs(self) -> dict[str, tuple[str, Ed25519PublicKey]]:
        """Epoch → its log and key, where the market certified it."""
        opened = dict[str, tuple[str, Ed25519PublicKey]]()
        for record in self.read("producers"):
            try:
                name, body = self.fact(record)
            except Exception:  # unreadable bytes open no epoch
                continue
            if name == "ProducerOpened" and len(body["public_key"]) == 32:
                message = b"modelmarket epoch 1\0" + measured(body["log_id"], body["producer"], body["epoch"]) + body["public_key"]
                if any(verifies(key, body["certificate"], message) for key in self.market_keys):
                    opened.setdefault(body["epoch"], (body["log_id"], Ed25519PublicKey.from_public_bytes(body["public_key"])))
        return opened


def schemas_of(records: Iterable[Record], setup_keys: Sequence[Ed25519PublicKey]) -> dict[int, tuple[str, Any]]:
    """Schema id → fact and schema: of each id the first record that set-up signed and whose hash is that of its text."""
    found = dict[int, tuple[str, Any]]()
    with open(SCHEMA_OF_SCHEMAS) as file:
        schema = fastavro.parse_schema(plain(json.load(file)))
    for record in records:
        message = b"modelmarket record 1\0schemas\0%d\0%s%s" % (len(record.key), record.key, record.value)
        signed = any(verifies(key, record.headers.get("signature", b""), message) for key in setup_keys)
        if signed and record.headers.get("ce_type") == b"SchemaRegistered":
            body: Body = fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema, None)  # type: ignore[assignment]
            if hashlib.sha256(body["definition"].encode()).digest() == body["sha256"] and body["schema_id"] not in found:
                name = body["subject"].rpartition("-")[2]
                found[body["schema_id"]] = (name, fastavro.parse_schema(plain(json.loads(body["definition"]))))
    return found


def public_keys(keys: str) -> list[Ed25519PublicKey]:
    return [Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) for key in keys.split(",")]


def verifies(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def measured(*texts: str) -> bytes:
    return b"".join(b"%d:%s" % (len(text.encode()), text.encode()) for text in texts)


def is_proven(record: Record, epoch: str, log_id: str, key: Ed25519PublicKey) -> bool:
    """Whether the header `epoch_proof` leads from the record to a root that the epoch signed."""
    proof = record.headers.get("epoch_proof", b"")
    sides, path, signature = int.from_bytes(proof[1:3], "big"), proof[3:-64], proof[-64:]
    if len(proof) < 67 or proof[0] != 1 or len(path) % 32 or sides >> (len(path) // 32):
        return False
    root = hashlib.sha256(b"\0" + hashlib.sha256(record.value).digest()).digest()
    for i in range(len(path) // 32):
        beside = path[32 * i : 32 * i + 32]
        root = hashlib.sha256(b"\1" + (beside + root if sides >> i & 1 else root + beside)).digest()
    return verifies(key, signature, b"modelmarket usage 1\0" + measured(log_id, epoch) + root)


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
