"""What producers wrote about their epochs, read once however often somebody asks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from commands.write_offs.log_evidence import EpochStatuses
from events.log.record import Record
from tests.support.todays_codec import todays_codec

CODEC = todays_codec()


class Producers:
    """Takes the place of a `Reader` of topic `producers`, and counts the records that it reads."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.count = 0

    def write(self, name: str, epoch: str, producer: str = "gateway", value: bytes | None = None) -> None:
        body: dict[str, Any] = {"event_id": str(uuid.uuid4()), "occurred_at": 1, "producer": producer, "epoch": epoch}
        if name == "ProducerOpened":
            body |= {"log_id": "log", "host": "h", "region": "r", "public_key": b"k", "certified_by": "m", "certificate": b"c"}
        else:
            body |= {"last": {"acme": 1}, "closed_by": producer}
        value = CODEC.encode_dict(name, body) if value is None else value
        self.records.append(Record("producers", 0, len(self.records), 1, producer.encode(), value, {}))

    def read(self, topic: str, start: Mapping[int, int]) -> Iterator[Record]:
        assert topic == "producers"
        for record in self.records[start.get(0, 0) :]:
            self.count += 1
            yield record


def test_a_question_reads_what_is_new() -> None:
    producers, statuses = Producers(), EpochStatuses(CODEC)
    reader: Any = producers
    for n in range(1_000):
        producers.write("ProducerOpened", f"e{n}")
        producers.write("ProducerClosed", f"e{n}")
    for n in range(50):
        assert statuses.status(reader, "gateway", f"e{n}") == "closed"
    assert producers.count == 2_000
    producers.write("ProducerOpened", "new")
    assert statuses.status(reader, "gateway", "new") == "open"
    assert producers.count == 2_001


def test_only_what_a_producer_wrote_about_an_epoch_that_it_opened_says_something() -> None:
    producers, statuses = Producers(), EpochStatuses(CODEC)
    reader: Any = producers
    producers.write("ProducerClosed", "e")
    producers.write("ProducerOpened", "e")
    producers.write("ProducerOpened", "no fact", value=b"\0\0\0")
    assert statuses.status(reader, "gateway", "e") == "open", "it was closed before it was opened: somebody else's word"
    assert statuses.status(reader, "another", "e") == statuses.status(reader, "gateway", "f") == "unknown"
    producers.write("ProducerClosed", "e")
    producers.write("ProducerOpened", "e")
    assert statuses.status(reader, "gateway", "e") == "closed"
