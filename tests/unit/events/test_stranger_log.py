"""Whoever recomputes a bill by `docs/billing.md` believes the schemas that set-up signed, as every process does (K2)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from events.log.record import Record as OurRecord
from events.log.recorded_schemas import RecordedSchemas
from events.log.signature import signed_headers
from events.process.signing_keys import SigningKey
from events.schema.codec import Codec
from examples.stranger_log import Record, public_keys, schemas_of
from tests.support.todays_codec import RELAY_KEY, SETUP_KEY, SETUP_KEYS


def registered(codec: Codec, schema_id: int, field: str, *, sha256: bytes = b"") -> bytes:
    text = json.dumps({"type": "record", "name": "TenantCreated", "fields": [{"name": field, "type": "string"}]})
    body: dict[str, Any] = {"event_id": "e", "occurred_at": 1, "producer": "p", "log_id": "l", "schema_id": schema_id}
    body |= {"subject": "accounts-TenantCreated", "definition": text, "sha256": sha256 or hashlib.sha256(text.encode()).digest()}
    return codec.encode_dict("SchemaRegistered", body)


def put(value: bytes, key: SigningKey | None = None, *, of: bytes | None = None) -> tuple[bytes, dict[str, bytes]]:
    """`of`: another value, whose signature is copied."""
    proof = {} if key is None else signed_headers(key, "schemas", b"k", value if of is None else of)
    return value, {"ce_type": b"SchemaRegistered", **proof}


def test_a_forged_schema_in_front_of_the_true_one_counts_for_nobody_and_stops_nobody(codec: Codec) -> None:
    created = {"event_id": "e", "occurred_at": 1, "producer": "p", "log_id": "l", "partitioner": "p", "partitions": {}}
    opening = codec.encode_dict("LogCreated", created)
    true = registered(codec, 7, "true")
    written = [
        (opening, {"ce_type": b"LogCreated", **signed_headers(SETUP_KEY, "schemas", b"k", opening)}),
        put(b"garbage"),
        put(registered(codec, 7, "forged")),
        put(registered(codec, 7, "forged"), RELAY_KEY),
        put(registered(codec, 7, "forged"), SETUP_KEY, of=true),
        put(registered(codec, 7, "torn", sha256=bytes(32)), SETUP_KEY),
        put(true, SETUP_KEY),
        put(registered(codec, 7, "late"), SETUP_KEY),
    ]
    ours = RecordedSchemas(SETUP_KEYS)
    for offset, (value, headers) in enumerate(written):
        ours.take(OurRecord("schemas", 0, offset, 0, b"k", value, headers))
    found = schemas_of([Record(0, n, 0, b"k", *one) for n, one in enumerate(written)], public_keys(SETUP_KEY.public.hex()))
    assert [field["name"] for field in found[7][1]["fields"]] == ["true"] and found[7][0] == "TenantCreated"
    assert json.loads(ours.schemas.by_id[7].definition)["fields"][0]["name"] == "true"
