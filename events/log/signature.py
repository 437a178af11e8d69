"""The signature of a record, in its headers: over the topic, the key and the value, so that it fits no other record."""

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
