"""A fact is decoded exactly as it was encoded; bytes that are no fact are refused with the code of their defect."""

from __future__ import annotations

import json

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.facts.fact import Fact
from events.facts.log import StoreOpened
from events.facts.topics import FACTS, TOPICS, FactEntry, entries
from events.schema import derivation as avro
from events.schema.codec import FRAME_BYTES_MAX, Codec, FrameTooLarge, Schema, SchemaSet, Undecodable, UnknownSubject, todays_schemas
from events.schema.examples import example_of


@pytest.mark.parametrize("entry", list(entries()), ids=lambda e: e.subject)
def test_every_fact_survives_encoding_and_decoding(codec: Codec, entry: FactEntry) -> None:
    fact = example_of(entry)
    frame = codec.encode(fact, entry.topic)
    assert frame[0] == 0
    name, body = codec.decode(frame)
    assert name == entry.name
    assert entry.cls.model_validate(body) == fact


@pytest.mark.parametrize("entry", list(entries()), ids=lambda e: e.subject)
def test_every_schema_is_valid_for_another_avro_library(entry: FactEntry) -> None:
    fastavro.parse_schema(json.loads(avro.canonical(avro.schema_of(entry.cls))))


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "no_value"),
        (b"", "not_framed"),
        (b"\x00\x00", "not_framed"),
        (b"\x01\x00\x00\x00\x64", "not_framed"),
        (b'{"json": true}', "not_framed"),
        (b"\x00\xff\xff\xff\xff\x00", "unknown_schema"),
        (b"\x00\x00\x00\x00\x64", "undecodable"),
        (b"\x00" + bytes(FRAME_BYTES_MAX), "too_large"),
    ],
)
def test_unreadable_bytes_are_refused_with_a_code(codec: Codec, value: bytes | None, code: str) -> None:
    with pytest.raises(Undecodable) as caught:
        codec.decode(value)
    assert caught.value.code == code


def test_a_record_with_something_after_its_end_is_refused(codec: Codec) -> None:
    frame = codec.encode(example_of(FACTS["TenantCreated"]))
    with pytest.raises(Undecodable) as caught:
        codec.decode(frame + b"\x00")
    assert caught.value.code == "trailing_bytes"


@given(cut=st.integers(min_value=5, max_value=400))
def test_a_record_cut_short_is_never_read(cut: int) -> None:
    schemas = SchemaSet()
    schemas.add(Schema.of(1, "usage-InvocationSettled", todays_schemas()["usage-InvocationSettled"]))
    codec = Codec(schemas)
    frame = codec.encode(example_of(FACTS["InvocationSettled"]))
    if cut < len(frame):
        with pytest.raises(Undecodable):
            codec.decode(frame[:cut])


def test_a_fact_that_does_not_fit_is_refused_before_it_is_stored(codec: Codec) -> None:
    fact = example_of(FACTS["ModelRegistered"]).model_copy(update={"description": "x" * FRAME_BYTES_MAX})
    with pytest.raises(FrameTooLarge):
        codec.encode(fact)


def test_a_fact_without_a_schema_on_the_log_is_not_written() -> None:
    with pytest.raises(UnknownSubject, match="schemas publish"):
        Codec(SchemaSet()).encode(example_of(FACTS["TenantCreated"]))


def test_an_older_record_takes_todays_defaults_for_what_it_did_not_know() -> None:
    schema = json.loads(todays_schemas()["usage-InvocationSettled"])
    schema["fields"] = [f for f in schema["fields"] if f["name"] not in ("images", "labels")]
    schemas = SchemaSet()
    schemas.by_id[9] = Schema.of(9, "usage-InvocationSettled", json.dumps(schema))
    schemas.current["usage-InvocationSettled"] = schemas.by_id[9]
    old = Codec(schemas)
    fact = example_of(FACTS["InvocationSettled"])
    frame = old.encode_dict("InvocationSettled", fact.model_dump())
    _, body = old.decode(frame)
    assert (body["images"], body["labels"]) == (0, {})
    assert FACTS["InvocationSettled"].cls.model_validate(body).event_id == fact.event_id


def test_no_fact_holds_a_float() -> None:
    for entry in entries():
        assert '"double"' not in avro.canonical(avro.schema_of(entry.cls))
        assert '"float"' not in avro.canonical(avro.schema_of(entry.cls))


def test_every_fact_names_a_key_it_has() -> None:
    for entry in entries():
        assert entry.key in entry.cls.model_fields, entry.subject
        assert entry.topic in TOPICS


def test_every_fact_starts_with_the_same_fields() -> None:
    first = tuple(Fact.model_fields)
    for entry in entries():
        assert tuple(entry.cls.model_fields)[: len(first)] == first
    assert StoreOpened.kind == "decided"


def test_fields_left_out_take_the_schemas_defaults(codec: Codec) -> None:
    required = {k: v for k, v in example_of(FACTS["InvocationSettled"]) if FACTS["InvocationSettled"].cls.model_fields[k].is_required()}
    name, body = codec.decode(codec.encode_dict("InvocationSettled", required))
    assert name == "InvocationSettled"
    assert body == FACTS["InvocationSettled"].cls.model_validate(required).model_dump()
