"""What the log has of a record or an epoch that is to be written off."""

from __future__ import annotations

import hashlib

from commands.write_offs.producers import EpochStatus
from events.facts.producers import ProducerClosed, ProducerOpened
from events.log.client import LogMismatch, Reader
from events.log.record import Coordinate
from events.schema.codec import Codec, Undecodable


def sha256_at(reader: Reader, at: Coordinate) -> bytes | None:
    """Of the value at a coordinate; None when the log has no record there."""
    low, high = reader.bounds(at.topic)[at.topic, at.partition]
    if not low <= at.offset < high:
        return None
    try:
        return hashlib.sha256(reader.record_at(at.topic, at.partition, at.offset).value or b"").digest()
    except LogMismatch:
        return None


def epoch_status(reader: Reader, codec: Codec, producer: str, epoch: str) -> EpochStatus:
    """What the producer wrote about the epoch. Reads the whole topic: one record for each start and end of a gateway."""
    status: EpochStatus = "unknown"
    for record in reader.read("producers"):
        try:
            name, body = codec.decode(record.value)
        except Undecodable:
            continue  # bytes that are no fact open and close nothing
        if name == ProducerOpened.__name__ and (body["producer"], body["epoch"]) == (producer, epoch) and status == "unknown":
            status = "open"
        if name == ProducerClosed.__name__ and body["epoch"] == epoch and status == "open":
            status = "closed"
    return status
