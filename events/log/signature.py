"""The signature of a record, in its headers: over the topic, the key and the value, so that it fits no other record. That of a decided
record is over its hash in the chain, which covers the records before it as well (`events.log.chain`)."""

from __future__ import annotations

from events.log.record import LogRecord
from events.process.signing_keys import PublicKeys, SigningKey

SIGNATURE, SIGNED_BY = "signature", "signed_by"


def signed_headers(key: SigningKey, topic: str, record_key: bytes, value: bytes) -> dict[str, bytes]:
    return {SIGNED_BY: key.key_id.encode(), SIGNATURE: key.sign(_message(topic, record_key, value))}


def is_signed(record: LogRecord, keys: PublicKeys) -> bool:
    """Whether one of these keys signed it. Tens of microseconds."""
    headers = dict(record.headers)
    key_id, signature = headers.get(SIGNED_BY, b"").decode("ascii", "replace"), headers.get(SIGNATURE, b"")
    return keys.verify(key_id, _message(record.topic, record.key or b"", record.value or b""), signature)


def _message(topic: str, record_key: bytes, value: bytes) -> bytes:
    return b"modelmarket record 1\0%s\0%d\0%s%s" % (topic.encode(), len(record_key), record_key, value)


def chain_signature(relay_key: SigningKey, topic: str, partition: int, record_sha256: bytes) -> dict[str, bytes]:
    message = _chain_message(topic, partition, record_sha256)
    return {SIGNED_BY: relay_key.key_id.encode(), SIGNATURE: relay_key.sign(message)}


def is_chain_signed(record: LogRecord, record_sha256: bytes, relay_keys: PublicKeys) -> bool:
    """Whether the relay signed the decided record with this hash in its partition. A tenth of a millisecond."""
    headers = dict(record.headers)
    key_id, signature = headers.get(SIGNED_BY, b"").decode("ascii", "replace"), headers.get(SIGNATURE, b"")
    return relay_keys.verify(key_id, _chain_message(record.topic, record.partition, record_sha256), signature)


def _chain_message(topic: str, partition: int, record_sha256: bytes) -> bytes:
    return b"modelmarket chain 1\0%s\0%d\0%s" % (topic.encode(), partition, record_sha256)
