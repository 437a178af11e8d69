"""The log on a real broker and a real registry: other people's tools read it, and a wrong log or registry is refused (K1, K2, K5)."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from events.facts.log import SchemaRegistered
from events.facts.topics import FACTS, TOPICS
from events.log.chain import FIRST, ChainPosition
from events.log.client import LogMismatch, LogUnavailable, Reader, Writer
from events.log.fold_runner import FoldRunner
from events.log.heartbeat import Heartbeat
from events.log.partitioner import partition_of
from events.log.record import Coordinate
from events.log.registry_restore import restore
from events.log.schemas import append_signed, open_codec, publish, read_schemas, schemas_on_log
from events.log.sign_in import client_config
from events.log.topic_admin import Admin, apply_access, apply_topics, check_partitions, topic_drift, wait_until_listed
from events.process.clock import now_us
from events.process.ids import new_id
from events.process.passwords import OPERATOR
from events.process.settings import Settings
from events.process.signing_keys import signing_key
from events.schema.codec import Codec, Schema, Undecodable, todays_schemas
from events.schema.examples import example_of
from events.schema.registry import IncompatibleSchema, SchemaRegistry
from infra.launcher import Stack
from infra.launcher.paths import paths_of
from tests.support.polling import eventually
from tests.support.stacks import LOG, running_stack, signed_in


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A broker and a registry that the tests of this module share; what one of them changes it puts back."""
    with running_stack(tmp_path_factory.mktemp("log"), LOG) as stack:
        yield stack


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Stack]:
    """An empty broker."""
    with running_stack(tmp_path, {"kafka"}) as stack:
        yield stack


def _prepare(settings: Settings) -> tuple[Writer, Reader]:
    apply_topics(settings)
    apply_access(settings)
    writer, reader = Writer(settings, "test"), Reader(settings, "test")
    publish(settings, writer, reader)
    return writer, reader


def test_a_fact_reads_with_kafkas_own_tools_and_topics_match_the_topic_table(log: Stack) -> None:
    settings = log.settings
    writer, reader = _prepare(settings)
    assert topic_drift(settings) == []
    assert publish(settings, writer, reader) == []  # a second run finds nothing to do

    codec, log_id = open_codec(settings, reader)
    fact = example_of(FACTS["InvocationSettled"])
    at = writer.append("usage", b"acme", codec.encode(fact)).result(60)
    assert (at.topic, at.partition) == ("usage", partition_of(b"acme", TOPICS["usage"].partitions))

    # confluent_kafka's Avro deserializer, against the registry
    consumer = ck.Consumer({**client_config(signed_in(settings, OPERATOR)), "group.id": "stranger"})
    consumer.assign([ck.TopicPartition(at.topic, at.partition, at.offset)])
    message = _first(consumer)
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": settings.registry, "timeout": 10}))  # pyright: ignore[reportCallIssue]
    body: Any = deserialize(message.value(), SerializationContext("usage", MessageField.VALUE))
    assert (str(body["event_id"]), body["model"], body["latency_us"]) == (fact.event_id, "model-vision-lab-digits", 1)
    consumer.close()

    # Kafka's own console consumer
    printed = _console_consumer(settings, "schemas", sum(reader.end_offsets("schemas").values()))
    assert log_id in printed
    assert "usage-InvocationSettled" in printed
    writer.close()


def _first(consumer: ck.Consumer) -> ck.Message:
    def polled() -> ck.Message | None:
        message = consumer.poll(0.5)
        return message if message is not None and message.error() is None else None

    message = eventually(polled, "a record comes")
    assert message is not None
    return message


def _console_consumer(settings: Settings, topic: str, messages: int) -> str:
    from infra.launcher.jvm import java, kafka_classpath, tools_properties

    command = [java(), "-Xmx128m", "-cp", kafka_classpath(), "org.apache.kafka.tools.consumer.ConsoleConsumer"]
    command += [
        "--bootstrap-server",
        settings.kafka,
        "--topic",
        topic,
        "--from-beginning",
        "--max-messages",
        str(messages),
        "--timeout-ms",
        "30000",
        "--command-config",
        str(tools_properties(paths_of(settings))),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    return done.stdout.decode("utf-8", "replace")


def test_our_partitioner_is_librdkafkas(log: Stack) -> None:
    writer, _ = _prepare(log.settings)
    keys = [f"model-a-b-{n}".encode() for n in range(300)] + [b"", b"x", "模型".encode()]
    futures = [(k, writer.append("usage", k, b"x")) for k in keys if k]
    for key, future in futures:
        assert future.result(60).partition == partition_of(key, TOPICS["usage"].partitions)
    writer.close()


@pytest.mark.parametrize(
    "extra",
    [
        {"partitioner": "consistent_random"},
        {"transactional.id": "x"},
        {"enable.idempotence": False},
        {"enable.gapless.guarantee": False},
        {"message.timeout.ms": 500},
    ],
    ids=str,
)
def test_a_producer_that_could_leave_a_gap_is_refused(log: Stack, extra: dict[str, Any]) -> None:
    with pytest.raises(LogMismatch):
        Writer(log.settings, "test", extra=extra)


def test_a_topic_is_made_when_the_broker_lists_it(log: Stack) -> None:
    admin = Admin(log.settings)
    with pytest.raises(LogUnavailable, match="late-topic"):
        wait_until_listed(admin, {"late-topic": 2}, timeout_s=0.2)
    later = threading.Timer(0.3, lambda: admin.client.create_topics([NewTopic("late-topic", 2)]))
    later.start()
    wait_until_listed(admin, {"late-topic": 2})
    later.join()


def test_a_log_with_another_number_of_partitions_is_refused(kafka: Stack) -> None:
    admin = AdminClient(client_config(kafka.settings))
    for future in admin.create_topics([NewTopic("usage", 3)]).values():
        future.result(60)
    wait_until_listed(Admin(kafka.settings), {"usage": 3})
    apply_topics(kafka.settings)
    with pytest.raises(LogMismatch, match="usage has 3 partitions, not 4"):
        check_partitions(kafka.settings)
    assert any("usage: 3 partitions" in line for line in topic_drift(kafka.settings))


def test_a_changed_topic_setting_is_reported(log: Stack) -> None:
    apply_topics(log.settings)
    admin = AdminClient(client_config(log.settings))

    def keep_models(retention_ms: int) -> None:
        entry = ConfigEntry("retention.ms", str(retention_ms), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, "models", incremental_configs=[entry])
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(60)

    keep_models(60_000)
    eventually(lambda: topic_drift(log.settings), "the broker learns of it from the controller")
    assert topic_drift(log.settings) == ["models: retention.ms=60000, the topic table says -1"]
    keep_models(-1)
    eventually(lambda: not topic_drift(log.settings), "the broker learns of it from the controller")


def test_a_schema_that_could_not_read_old_records_is_refused_by_the_registry(log: Stack) -> None:
    settings = log.settings
    _prepare(settings)
    registry = SchemaRegistry(settings)
    before = json.loads(Path("schemas/usage/InvocationSettled.avsc").read_text())
    before["fields"].append({"name": "must_have", "type": "string"})
    with pytest.raises(IncompatibleSchema):
        registry.register("usage-InvocationSettled", json.dumps(before))
    before["fields"][-1]["default"] = ""
    registry.register("usage-InvocationSettled", json.dumps(before))  # with a default it may evolve


class _Tenants:
    code_version = "1"

    def __init__(self) -> None:
        self.tenants: list[str] = []

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        if name == "TenantCreated":
            self.tenants.append(body["tenant"])

    def dump(self) -> bytes:
        return json.dumps(self.tenants).encode()

    def load(self, state: bytes) -> None:
        self.tenants = json.loads(state)


def test_a_fold_is_as_fresh_as_its_heartbeat_and_resumes_from_its_snapshot(log: Stack, tmp_path: Path) -> None:
    settings = log.settings
    writer, reader = _prepare(settings)
    codec, log_id = open_codec(settings, reader)
    key = signing_key(settings, "relay")
    sent, hashes = dict[str, int](), dict[int, bytes]()
    position = 0

    def decide(partition: int, name: str, body: dict[str, Any], topic: str = "accounts") -> None:
        nonlocal position
        position += 1
        at = ChainPosition("s", position, hashes.get(partition, FIRST))
        base = {"event_id": "e", "occurred_at": 1, "producer": "test", "version": 1, "by": "u"}
        frame = codec.encode_dict(name, base | body, topic)
        hashes[partition] = at.sha256(b"k", frame)
        headers = at.signed_headers(key, topic, partition, hashes[partition]) | {"ce_type": name.encode()}
        writer.append(topic, b"k", frame, headers, partition).result(60)
        sent[f"{topic}/{partition}"] = position

    def heartbeat() -> None:
        newest = Heartbeat("s", position, sent, now_us())
        writer.append("heartbeats", newest.key, newest.to_json(), newest.signed_headers(key)).result(60)

    for partition in range(4):
        decide(partition, "StoreOpened", {"store": "s", "previous_store": "", "previous_position": 0})
    for n in range(100):
        decide(n % 4, "TenantCreated", {"tenant": f"t{n}", "display_name": "T"})

    snapshot = tmp_path / "fold.snapshot"
    fold = _Tenants()
    fold_runner = FoldRunner(settings, codec, log_id, ("accounts",), fold, name="test", snapshot=snapshot)
    fold_runner.start()
    forged = Heartbeat("s", 1 << 60, dict(sent), now_us())
    writer.append("heartbeats", forged.key, forged.to_json(), {}).result(60)
    eventually(lambda: fold_runner.lag == position, "every record is read")
    decide(0, "TenantCreated", {"tenant": "t100", "display_name": "T"})
    eventually(lambda: fold_runner.lag == position, "one more is read, so a whole round of the fold came behind the others")
    assert fold.tenants == [], "nothing is applied without a heartbeat of the relay's"
    assert not fold_runner.ready
    heartbeat()
    assert fold_runner.wait_caught_up(60)
    assert fold_runner.position == position, "the forged heartbeat stands before the relay's, and says nothing"
    assert fold.tenants == [f"t{n}" for n in range(101)]
    assert fold_runner.ready
    assert fold_runner.age_s() < 5
    eventually(lambda: not fold_runner.ready, "no heartbeat for five seconds: stale, and it says so")
    fold_runner.stop()
    fold_runner.save()

    decide(0, "TenantCreated", {"tenant": "late", "display_name": "T"})
    heartbeat()
    again = _Tenants()
    resumed = FoldRunner(settings, codec, log_id, ("accounts",), again, name="test", snapshot=snapshot)
    resumed.start()
    assert resumed.wait_caught_up(60)
    assert again.tenants == [*fold.tenants, "late"]
    resumed.stop()
    writer.close()


def test_a_reader_finds_the_ends_again_after_the_broker_was_killed(log: Stack) -> None:
    writer, _ = _prepare(log.settings)
    reader = Reader(log.settings, "test")
    before = reader.bounds("models", "usage")  # from now on it knows the leaders, and their epoch
    log.kill9("kafka")
    log.wait_healthy("kafka", 120)
    assert reader.bounds("models", "usage") == before
    at = writer.append("usage", b"acme", b"x").result(60)
    assert reader.end_offsets("usage")["usage", at.partition] == at.offset + 1
    writer.close()


def _wipe_registry(log: Stack) -> None:
    log.supervisor.stop("registry")
    eventually(lambda: log.pid("registry") is None, "the registry has ended")
    shutil.rmtree(log.settings.folder / "registry")
    log.up({"registry"})


def test_a_lost_registry_is_filled_again_from_the_log_under_the_same_ids(log: Stack) -> None:
    settings = log.settings
    writer, reader = _prepare(settings)
    with pytest.raises(LogMismatch, match="is not empty"):
        restore(settings, reader)
    # A second version of one subject: ids with holes between a subject's versions.
    known = schemas_on_log(reader)
    settled = next(s for s in known if s.name == "InvocationSettled")
    newer = json.loads(settled.definition)
    newer["fields"].append({"name": "later", "type": "long", "default": 0})
    later = Schema.of(SchemaRegistry(settings).register(settled.subject, json.dumps(newer)), settled.subject, json.dumps(newer))
    codec, log_id = open_codec(settings, reader)
    fact = SchemaRegistered(
        event_id=new_id(),
        occurred_at=now_us(),
        producer="test",
        log_id=log_id,
        schema_id=later.schema_id,
        subject=later.subject,
        sha256=later.sha256,
        definition=later.definition,
    )
    append_signed(writer, codec, signing_key(settings, "setup"), fact).result(60)
    newest = b"\x00" + later.schema_id.to_bytes(4, "big") + codec.encode(example_of(FACTS["InvocationSettled"]))[5:] + b"\x00"
    assert codec.decode(newest)[1]["later"] == 0  # recorded since this codec was made
    with pytest.raises(Undecodable, match="unknown_schema"):
        codec.decode(b"\x00" + (later.schema_id + 1000).to_bytes(4, "big"))

    _wipe_registry(log)
    with pytest.raises(LogMismatch):
        open_codec(settings, reader)
    restored = restore(settings, reader)
    assert {(s.schema_id, s.subject) for s in restored} == {(s.schema_id, s.subject) for s in known} | {(later.schema_id, later.subject)}
    assert open_codec(settings, reader)[1] == log_id
    assert publish(settings, writer, reader) == []  # the registry finds every text of today under its old id …
    registry, again = SchemaRegistry(settings), {s.subject: s.schema_id for s in known}
    assert {subject: registry.register(subject, text) for subject, text in todays_schemas().items()} == again
    other = json.dumps({"type": "record", "name": "Other", "fields": []})
    assert registry.register("schemas-Other", other) > later.schema_id  # … and gives no old id away
    with pytest.raises(IncompatibleSchema):
        registry.register(settled.subject, json.dumps({**newer, "fields": [*newer["fields"], {"name": "no_default", "type": "long"}]}))
    with pytest.raises(LogMismatch, match="is not empty"):
        restore(settings, reader)
    writer.close()
    reader.close()


def test_a_wiped_registry_is_refused_and_the_log_still_decodes(log: Stack) -> None:
    """The last test here: afterwards registry and log do not belong together."""
    settings = log.settings
    writer, reader = _prepare(settings)
    codec, log_id = open_codec(settings, reader)
    fact = example_of(FACTS["TenantCreated"])
    at = writer.append("accounts", b"acme", codec.encode(fact)).result(60)

    _wipe_registry(log)
    registry = SchemaRegistry(settings)
    for subject, definition in reversed(list(todays_schemas().items())):  # registered in another order: other ids
        registry.register(subject, definition)

    reader = Reader(settings, "test")
    with pytest.raises(LogMismatch, match="not this log's registry"):
        open_codec(settings, reader)
    schemas, same_log = read_schemas(reader)
    assert same_log == log_id
    record = reader.record_at(at.topic, at.partition, at.offset)
    assert Codec(schemas).fact(record.value or b"") == fact
