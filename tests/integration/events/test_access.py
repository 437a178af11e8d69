"""Who may do what at Kafka, asked of a real broker: each role by its own password, and nobody without one."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]

from events.facts.topic_access import ACCESS, ROLES, Grant, worker_group
from events.facts.topics import TOPICS
from events.log import topic_admin
from events.log.client import LogBroken, Reader, Writer
from events.log.sign_in import LogDenied, client_config
from events.log.topic_admin import apply_access, apply_topics, check_group, check_partitions
from events.process.passwords import OPERATOR, kafka_password_file
from events.process.settings import Settings
from events.process.signing_keys import mint_keys
from infra.launcher import Stack, processes
from infra.launcher.jvm import tools_properties
from tests.support.command_processes import Process
from tests.support.polling import eventually
from tests.support.stacks import running_stack, signed_in

DENIED = {ck.KafkaError.TOPIC_AUTHORIZATION_FAILED, ck.KafkaError.CLUSTER_AUTHORIZATION_FAILED}
ANSWER_S_MAX = 60.0


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A broker with the topics and rights of the tables, and a record on each topic."""
    with running_stack(tmp_path_factory.mktemp("access"), {"kafka"}) as stack:
        apply_topics(stack.settings)
        apply_access(stack.settings)
        writer = Writer(stack.settings, "test")
        for topic in TOPICS:
            writer.append(topic, b"k", b"x", partition=0).result(ANSWER_S_MAX)
        writer.close()
        mint_keys(stack.settings)
        yield stack


def quiet(settings: Settings) -> dict[str, Any]:
    """Of a plain client: nothing of ours but the sign-in."""
    return client_config(settings) | {"log_level": 0}


def written(settings: Settings) -> set[str]:
    """Topics to which a plain producer with this sign-in can write; every other one must refuse it by name."""
    producer = ck.Producer({**quiet(settings), "acks": "all", "enable.idempotence": False})
    answers: dict[str, ck.KafkaError | None] = {}
    for topic in TOPICS:
        producer.produce(topic, b"x", partition=0, on_delivery=lambda error, _, topic=topic: answers.update({topic: error}))
    assert producer.flush(ANSWER_S_MAX) == 0
    assert answers.keys() == TOPICS.keys()
    assert {error.code() for error in answers.values() if error is not None} <= DENIED
    return {topic for topic, error in answers.items() if error is None}


def read(settings: Settings) -> set[str]:
    """The same for a plain consumer."""
    consumer = ck.Consumer({**quiet(settings), "group.id": "modelmarket-test", "enable.auto.commit": False})
    consumer.assign([ck.TopicPartition(topic, 0, 0) for topic in TOPICS])
    answers: dict[str, bool] = {}

    def all_answered() -> bool:
        for message in consumer.consume(1000, 0.2):
            error = message.error()
            assert error is None or error.code() in DENIED, error
            answers[str(message.topic())] = error is None
        return answers.keys() == TOPICS.keys()

    try:
        eventually(all_answered, f"an answer for each topic, {answers}", ANSWER_S_MAX)
    finally:
        consumer.close()
    return {topic for topic, came in answers.items() if came}


@pytest.mark.parametrize("role", ACCESS)
def test_a_role_reads_and_writes_what_the_table_says_and_nothing_else(kafka: Stack, role: str) -> None:
    settings = signed_in(kafka.settings, role)
    assert written(settings) == set(ACCESS[role].writes)
    assert read(settings) == set(ACCESS[role].reads)
    check_partitions(settings)  # everybody may see whether this is the right log


def test_a_gateway_decides_nothing_and_a_worker_writes_no_usage(kafka: Stack) -> None:
    """Our own clients say so in a sentence: who, where, and what to do."""
    for role, topic in (("gateway", "accounts"), ("gateway", "heartbeats"), ("worker", "usage")):
        writer = Writer(signed_in(kafka.settings, role), "test")
        with pytest.raises(LogBroken, match=rf"does not let {role} do this: .*{topic}.*authorization failed.*modelmarket topics apply"):
            writer.append(topic, b"k", b"x").result(ANSWER_S_MAX)
        writer.close(0)
    reader = Reader(signed_in(kafka.settings, "gateway"), "test")
    with pytest.raises(LogDenied, match=r"does not let gateway do this: usage: .*Topic authorization failed.*modelmarket topics apply"):
        list(reader.read("usage", timeout_s=ANSWER_S_MAX))
    reader.close()


@pytest.mark.parametrize("role", ACCESS)
def test_no_role_changes_topics_or_rights_and_only_workers_join_their_group(kafka: Stack, role: str) -> None:
    settings = signed_in(kafka.settings, role)
    admin = AdminClient(quiet(settings))
    for futures in (admin.create_topics([NewTopic("mine", 1)]), admin.delete_topics(["usage"]), admin.delete_consumer_groups(["g"])):
        for future in futures.values():
            with pytest.raises(ck.KafkaException, match=r"(?i)authorization"):
                future.result(ANSWER_S_MAX)
    with pytest.raises(LogDenied, match="Cluster authorization failed"):
        apply_access(settings)
    if role != "worker":
        group = worker_group(settings.stack)
        consumer = ck.Consumer({**quiet(settings), "group.id": group, "enable.auto.commit": False})
        consumer.subscribe(["heartbeats"])
        try:
            refused = eventually(
                lambda: next((m.error() for m in consumer.consume(1, 0.2) if m.error()), None), "the group refuses", ANSWER_S_MAX
            )
            assert refused is not None and refused.code() == ck.KafkaError.GROUP_AUTHORIZATION_FAILED
        finally:
            consumer.close()


def test_a_worker_of_another_stack_is_refused_at_its_start_and_does_not_wait_for_its_group(kafka: Stack) -> None:
    settings = signed_in(kafka.settings, "worker")
    check_group(settings, worker_group(settings.stack))
    with pytest.raises(LogDenied, match=r"does not let worker do this: .*Group authorization failed.*modelmarket topics apply"):
        check_group(settings, worker_group("another"))


def test_whoever_does_not_sign_in_gets_nothing(kafka: Stack) -> None:
    nobody = kafka.settings.model_copy(update={"kafka_security_protocol": "PLAINTEXT"})
    for port in (kafka.settings.kafka_port, kafka.settings.kafka_controller_port):
        admin = AdminClient({**quiet(nobody), "bootstrap.servers": f"{kafka.settings.host}:{port}"})
        with pytest.raises(ck.KafkaException):
            admin.list_topics(timeout=2)


@pytest.mark.parametrize("role", ["prepare", "relay"])
def test_the_controllers_listener_knows_the_broker_alone(kafka: Stack, role: str) -> None:
    config = quiet(signed_in(kafka.settings, role))
    denied: list[ck.KafkaError] = []
    where = f"{kafka.settings.host}:{kafka.settings.kafka_controller_port}"
    options: dict[str, Any] = {**config, "bootstrap.servers": where, "error_cb": denied.append}
    admin = AdminClient(options)

    def refused() -> bool:
        with pytest.raises(ck.KafkaException):
            admin.list_topics(timeout=2)
        admin.poll(0)
        return any("Authentication failed" in error.str() for error in denied)

    eventually(refused, "the listener refuses")


def wrong(settings: Settings) -> Settings:
    return Settings.model_validate(
        {**settings.model_dump(exclude_defaults=True), "kafka_sasl_username": "relay", "kafka_sasl_password": "guessed"}
    )


def test_a_wrong_password_is_an_error_with_a_remedy_and_no_endless_retry(kafka: Stack) -> None:
    settings = wrong(kafka.settings)
    sentence = rf"does not let relay in.*{kafka_password_file(settings.folder, 'relay')}.*modelmarket restart kafka"
    reader, writer = Reader(settings, "test"), Writer(settings, "test")
    with pytest.raises(LogDenied, match=sentence):
        reader.bounds("models")
    with pytest.raises(LogDenied, match=sentence):
        reader.record_at("models", 0, 0, timeout_s=ANSWER_S_MAX)
    with pytest.raises(LogDenied, match=sentence):
        check_partitions(settings)
    eventually(lambda: writer.fatal, "the writer gives up", ANSWER_S_MAX)
    with pytest.raises(LogBroken, match=sentence):
        writer.append("models", b"k", b"x")
    writer.close(0)
    reader.close()


def test_a_part_with_a_wrong_password_ends_with_a_sentence(kafka: Stack) -> None:
    relay = Process("commands.relay.relay", kafka.settings, {"KAFKA_SASL_PASSWORD": "guessed"}).start()
    try:
        assert relay.ended() == 2
    finally:
        relay.stop()
    assert "does not let relay in" in relay.log.read_text() and "Traceback" not in relay.log.read_text()


def test_without_a_password_no_client_is_made(tmp_path: Path) -> None:
    with pytest.raises(LogDenied, match=r"no password of operator.*modelmarket up kafka"):
        Reader(Settings(data=tmp_path), "test")
    with pytest.raises(LogDenied, match=r"no password of nobody.*MODELMARKET_KAFKA_SASL_USERNAME"):
        Writer(Settings(data=tmp_path, kafka_bootstrap="kafka.example:9092", kafka_security_protocol="SASL_SSL"), "test")


def test_rights_are_made_as_the_table_says_and_what_is_beyond_it_is_taken_away(
    kafka: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = kafka.settings
    assert apply_access(settings) == []
    made = list(topic_admin.grants(settings.stack))
    yesterday = [*made[:-1], Grant("queries", "write", "topic", "usage"), Grant("somebody", "read", "topic", "usage")]
    with monkeypatch.context() as patch:
        patch.setattr(topic_admin, "grants", lambda stack: iter(yesterday))
        patch.setattr(topic_admin, "ROLES", (*ROLES, "somebody"))
        assert apply_access(settings)[:2] == ["granted: queries may write topic usage", "granted: somebody may read topic usage"]
    assert "usage" in written(signed_in(settings, "queries"))
    with caplog.at_level(logging.WARNING):
        assert apply_access(settings) == [
            "granted: operator may read group names that begin with console-consumer-",
            "taken away: queries may write topic usage",
        ]
    assert "rights beside the table of roles: somebody may read topic usage" in caplog.text
    assert written(signed_in(settings, "queries")) == set()
    assert apply_access(settings) == []


def test_passwords_are_readable_by_their_owner_only_and_stand_on_no_command_line(kafka: Stack) -> None:
    folder = kafka.settings.folder
    files = [
        *(kafka_password_file(folder, role) for role in ROLES),
        folder / "kafka" / "users.jaas",
        tools_properties(kafka.paths, OPERATOR),
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    passwords = {kafka_password_file(folder, role).read_text().strip() for role in ROLES}
    assert len(passwords) == len(ROLES)
    for pid in processes.marked(kafka.paths.mark):
        text = processes.command_of(pid) + processes.environment_of(pid).decode(errors="replace")
        assert not any(password in text for password in passwords)
