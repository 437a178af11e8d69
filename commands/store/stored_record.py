"""A stored event's bytes: where the record goes on the log, its headers, and the finished frame.

The store keeps these bytes and the relay sends what is in them: nothing is encoded after it was decided (K3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from events.facts.topics import TOPICS
from events.log.partitioner import partition_of

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Opening:
    """What a `StoreOpened` says, readable without its schema."""

    store: str
    previous_store: str
    previous_position: int


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """`partition` is part of the decision: the relay must know each record's predecessor there before it sends (K4)."""

    topic: str
    partition: int
    key: bytes
    headers: Mapping[str, bytes]
    frame: bytes
    opening: Opening | None = None

    def pack(self) -> bytes:
        """Version byte, length of the head (4 bytes, big endian), head as JSON, frame."""
        head: dict[str, object] = {
            "t": self.topic,
            "p": self.partition,
            "k": self.key.decode(),
            "h": {k: v.decode() for k, v in self.headers.items()},
        }
        if self.opening is not None:
            head["o"] = [self.opening.store, self.opening.previous_store, self.opening.previous_position]
        encoded = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
        return bytes([_VERSION]) + len(encoded).to_bytes(4, "big") + encoded + self.frame


def unpack(state: bytes) -> StoredRecord:
    assert state[0] == _VERSION, f"stored event of version {state[0]}"
    end = 5 + int.from_bytes(state[1:5], "big")
    head = json.loads(state[5:end])
    opening = Opening(*head["o"]) if "o" in head else None
    headers = {str(k): str(v).encode() for k, v in head["h"].items()}
    return StoredRecord(str(head["t"]), int(head["p"]), str(head["k"]).encode(), headers, state[end:], opening)


def record_for(topic: str, key: bytes, headers: Mapping[str, bytes], frame: bytes) -> StoredRecord:
    """The record, for the partition that its key belongs to."""
    return StoredRecord(topic, partition_of(key, TOPICS[topic].partitions), key, headers, frame)
