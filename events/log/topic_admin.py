"""The topics of the topic table on a broker: made where missing, never changed, and every difference said (K1). The admin half of `log.py`."""

from __future__ import annotations

import time

import confluent_kafka as ck
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ConfigSource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from events.facts.topics import TOPICS, Topic
from events.log.client import CALL_S_MAX, RECORD_BYTES_MAX, LogMismatch, LogUnavailable, client_config
from events.process.settings import Settings

LISTED_POLL_S = 0.05


def _topic_config(topic: Topic, settings: Settings) -> dict[str, str]:
    return {
        "retention.ms": str(topic.retention_ms),
        "retention.bytes": "-1",
        "cleanup.policy": "delete",
        # The broker's clock is what "when did it arrive" means for late usage (K20).
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(RECORD_BYTES_MAX),
        "min.insync.replicas": str(settings.kafka_min_insync),
    }


def apply_topics(settings: Settings) -> list[str]:
    """Creates what is missing from the topic table and returns the names. Never changes what is there."""
    admin = AdminClient(client_config(settings))
    there = _existing(admin)
    missing = [t for t in TOPICS.values() if t.name not in there]
    made = (
        admin.create_topics(
            [NewTopic(t.name, t.partitions, settings.kafka_replication, config=_topic_config(t, settings)) for t in missing],
            operation_timeout=CALL_S_MAX,
        )
        if missing
        else {}
    )
    for name, future in made.items():
        try:
            future.result(CALL_S_MAX)
        except ck.KafkaException as e:
            if e.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                raise LogUnavailable(f"create {name}: {e}") from e
    wait_until_listed(admin, {t.name: t.partitions for t in missing})
    return [t.name for t in missing]


def wait_until_listed(admin: AdminClient, partitions: dict[str, int], timeout_s: float = CALL_S_MAX) -> None:
    """The controller has made a topic some moments before each broker can say so. Raises LogUnavailable."""
    end = time.monotonic() + timeout_s
    while not partitions.items() <= (there := _existing(admin)).items():
        if time.monotonic() > end:
            late = ", ".join(name for name, count in partitions.items() if there.get(name) != count)
            raise LogUnavailable(f"the broker does not list these topics {timeout_s:.0f} s after they were made: {late}")
        time.sleep(LISTED_POLL_S)


def topic_drift(settings: Settings) -> list[str]:
    """Each difference between the topic table and the broker, as a sentence; empty when there is none (K1)."""
    admin = AdminClient(client_config(settings))
    there = _existing(admin)
    drift: list[str] = []
    present = [t for t in TOPICS.values() if t.name in there]
    for t in TOPICS.values():
        if t.name not in there:
            drift.append(f"{t.name}: missing")
        elif there[t.name] != t.partitions:
            drift.append(f"{t.name}: {there[t.name]} partitions, the topic table says {t.partitions}; partition counts never change")
    if present:
        resources = [ConfigResource(ResourceType.TOPIC, t.name) for t in present]
        for resource, future in admin.describe_configs(resources, request_timeout=CALL_S_MAX).items():
            try:
                entries = future.result(CALL_S_MAX)
            except ck.KafkaException as e:
                raise LogUnavailable(f"describe {resource.name}: {e}") from e
            for key, want in _topic_config(TOPICS[resource.name], settings).items():
                if key in entries and entries[key].value != want:
                    default = " (the broker's default)" if entries[key].source != ConfigSource.DYNAMIC_TOPIC_CONFIG.value else ""
                    drift.append(f"{resource.name}: {key}={entries[key].value}{default}, the topic table says {want}")
    return drift


def check_partitions(settings: Settings) -> None:
    """Refuses a log whose topics are missing or have another number of partitions: folding it would be wrong (K1)."""
    there = _existing(AdminClient(client_config(settings)))
    wrong = [
        f"{t.name} has {there.get(t.name, 'no')} partitions, not {t.partitions}"
        for t in TOPICS.values()
        if there.get(t.name) != t.partitions
    ]
    if wrong:
        raise LogMismatch("; ".join(wrong) + "; run `modelmarket topics apply` on a new log, or connect to the right one")


def _existing(admin: AdminClient) -> dict[str, int]:
    try:
        metadata = admin.list_topics(timeout=CALL_S_MAX)
    except ck.KafkaException as e:
        raise LogUnavailable(f"Kafka does not answer: {e}") from e
    return {name: len(t.partitions) for name, t in metadata.topics.items()}
