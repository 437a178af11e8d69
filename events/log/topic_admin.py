"""The topics of the topic table on a broker, made where missing, never changed, and every difference said (K1); and who may use them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import (
    AclBinding,  # pyright: ignore[reportPrivateImportUsage]
    AclBindingFilter,  # pyright: ignore[reportPrivateImportUsage]
    AclOperation,  # pyright: ignore[reportPrivateImportUsage]
    AclPermissionType,  # pyright: ignore[reportPrivateImportUsage]
    AdminClient,
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ConfigSource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourcePatternType,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from events.facts.topic_access import EVERY, ROLES, Grant, grants
from events.facts.topics import TOPICS, Topic
from events.log.client import CALL_S_MAX, RECORD_BYTES_MAX, LogMismatch, LogUnavailable, client_log
from events.log.sign_in import Denials, client_config
from events.process.passwords import kafka_sign_in
from events.process.settings import Settings

logger = logging.getLogger(__name__)
LISTED_POLL_S = 0.05
APPLIED_S_MAX = 60.0
"""How long a broker that is busy with its own start may take to apply what set-up changed; 10 s were not enough."""
ASK_S = 3.0
"""How long one question for metadata may take. A client that is not let in gets its error after the first."""
PRINCIPAL = "User:"
TAKEN_AWAY = "taken away: "
NAMED_MAX = 10
"""Strangers' rights that one warning names."""


class Admin:
    """A client for topics and rights. Its calls raise LogUnavailable and LogDenied."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self._denials = settings, Denials(settings)
        config: dict[str, Any] = client_config(settings) | {"error_cb": self._denials.on_error}
        self.client = AdminClient(config, logger=client_log)

    def failed(self, doing: str, failure: Exception) -> LogUnavailable:
        """What to raise for a call that failed. Raises LogDenied itself."""
        self.client.poll(0)  # calls error_cb
        self._denials.check(failure.args[0] if isinstance(failure, ck.KafkaException) else None)
        return LogUnavailable(f"{doing}: {failure}")

    def topics(self) -> dict[str, int]:
        """Partitions of every topic that this role may see."""
        end = time.monotonic() + CALL_S_MAX
        while True:
            last_try = time.monotonic() + ASK_S > end
            try:
                metadata = self.client.list_topics(timeout=ASK_S)
                return {name: len(t.partitions) for name, t in metadata.topics.items()}
            except ck.KafkaException as e:
                failure = self.failed(f"Kafka does not answer{self._unsigned()}", e)
                if last_try:
                    raise failure from e
                time.sleep(LISTED_POLL_S)  # a broker that closes each connection is not asked in a tight loop

    def replicas(self) -> dict[str, int]:
        """The fewest replicas that a partition of each topic has."""
        try:
            metadata = self.client.list_topics(timeout=CALL_S_MAX)
        except ck.KafkaException as e:
            raise self.failed("Kafka does not say where its topics are", e) from e
        return {name: min((len(p.replicas) for p in t.partitions.values()), default=0) for name, t in metadata.topics.items()}

    def _unsigned(self) -> str:
        signs_in = kafka_sign_in(self.settings).mechanism
        return "" if signs_in else " a client that does not sign in (MODELMARKET_KAFKA_SECURITY_PROTOCOL)"


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
    admin = Admin(settings)
    there = admin.topics()
    missing = [t for t in TOPICS.values() if t.name not in there]
    made = (
        admin.client.create_topics(
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
                raise admin.failed(f"create {name}", e) from e
    wait_until_listed(admin, {t.name: t.partitions for t in missing})
    return [t.name for t in missing]


def wait_until_listed(admin: Admin, partitions: dict[str, int], timeout_s: float = APPLIED_S_MAX) -> None:
    """The controller has made a topic some moments before each broker can say so. Raises LogUnavailable."""
    end = time.monotonic() + timeout_s
    while not partitions.items() <= (there := admin.topics()).items():
        if time.monotonic() > end:
            late = ", ".join(name for name, count in partitions.items() if there.get(name) != count)
            raise LogUnavailable(f"the broker does not list these topics {timeout_s:.0f} s after they were made: {late}")
        time.sleep(LISTED_POLL_S)


def topic_drift(settings: Settings) -> list[str]:
    """Each difference between the topic table and the broker, as a sentence; empty when there is none (K1)."""
    admin = Admin(settings)
    there = admin.topics()
    drift: list[str] = []
    present = [t for t in TOPICS.values() if t.name in there]
    for t in TOPICS.values():
        if t.name not in there:
            drift.append(f"{t.name}: missing")
        elif there[t.name] != t.partitions:
            drift.append(f"{t.name}: {there[t.name]} partitions, the topic table says {t.partitions}; partition counts never change")
    replicas = admin.replicas()
    drift += [
        f"{t.name}: {replicas[t.name]} replicas, {settings.kafka_replication} are asked for; `kafka-reassign-partitions` adds some"
        for t in present
        if replicas.get(t.name, settings.kafka_replication) != settings.kafka_replication
    ]
    if present:
        resources = [ConfigResource(ResourceType.TOPIC, t.name) for t in present]
        for resource, future in admin.client.describe_configs(resources, request_timeout=CALL_S_MAX).items():
            try:
                entries = future.result(CALL_S_MAX)
            except ck.KafkaException as e:
                raise admin.failed(f"describe {resource.name}", e) from e
            for key, want in _topic_config(TOPICS[resource.name], settings).items():
                if key in entries and entries[key].value != want:
                    default = " (the broker's default)" if entries[key].source != ConfigSource.DYNAMIC_TOPIC_CONFIG.value else ""
                    drift.append(f"{resource.name}: {key}={entries[key].value}{default}, the topic table says {want}")
    return drift


def check_partitions(settings: Settings) -> None:
    """Refuses a log whose topics are missing or have another number of partitions: folding it would be wrong (K1)."""
    there = Admin(settings).topics()
    wrong = [
        f"{t.name} has {there.get(t.name, 'no')} partitions, not {t.partitions}"
        for t in TOPICS.values()
        if there.get(t.name) != t.partitions
    ]
    if wrong:
        raise LogMismatch("; ".join(wrong) + "; run `modelmarket topics apply` on a new log, or connect to the right one")


def check_group(settings: Settings, group: str) -> None:
    """Raises LogDenied when this role may not join the consumer group: Faust would wait for it for ever, without a word."""
    admin = Admin(settings)
    (described,) = admin.client.describe_consumer_groups([group], request_timeout=CALL_S_MAX).values()
    try:
        described.result(CALL_S_MAX + 1)
    except (ck.KafkaException, TimeoutError) as e:
        failure = admin.failed(f"consumer group {group}", e)
        logger.info("before the first member joins: %s", failure)


def apply_access(settings: Settings) -> list[str]:
    """Makes the brokers' access-control lists those of the table of roles: what is missing is added, what a role has beyond it is taken away.
    Returns each change as a sentence. What others than our roles may do is left alone, and named in a warning."""
    admin = Admin(settings)
    there = _bindings(admin)
    if there is None:
        logger.warning("Kafka at %s has no authorizer: whoever reaches it may read and write everything (docs/security.md)", settings.kafka)
        return []
    wanted = {_binding(grant) for grant in grants(settings.stack)}
    ours = {b for b in there if b.principal.removeprefix(PRINCIPAL) in ROLES}
    if strangers := sorted(_sentence(b) for b in there - ours if b.name in TOPICS or b.name == EVERY):
        logger.warning("rights beside the table of roles: %s", "; ".join(strangers[:NAMED_MAX]))
    missing, beyond = sorted(wanted - ours, key=_sentence), sorted(ours - wanted, key=_sentence)
    if missing:
        _finish(admin, admin.client.create_acls(missing, request_timeout=CALL_S_MAX).values())
    if beyond:
        _finish(admin, admin.client.delete_acls([_filter_of(b) for b in beyond], request_timeout=CALL_S_MAX).values())
    if missing or beyond:
        _wait_until_applied(admin, wanted)
    return [*(f"granted: {_sentence(b)}" for b in missing), *(f"{TAKEN_AWAY}{_sentence(b)}" for b in beyond)]


def _bindings(admin: Admin) -> set[AclBinding] | None:
    """Every access-control list there is; None when this cluster has no authorizer."""
    everything: Any = (ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY)
    try:
        return set(admin.client.describe_acls(AclBindingFilter(*everything), request_timeout=CALL_S_MAX).result(CALL_S_MAX + 1))
    except (ck.KafkaException, TimeoutError) as e:
        if isinstance(e, ck.KafkaException) and e.args[0].code() == ck.KafkaError.SECURITY_DISABLED:
            return None
        raise admin.failed("the access-control lists", e) from e


def _finish(admin: Admin, made: Iterable[Future[Any]]) -> None:
    failures: list[Exception] = []
    for future in made:
        try:
            future.result(CALL_S_MAX + 1)
        except (ck.KafkaException, TimeoutError) as e:
            failures.append(e)
    if failures:
        raise admin.failed("the access-control lists", failures[0]) from failures[0]


def _wait_until_applied(admin: Admin, wanted: set[AclBinding]) -> None:
    """The controller has a change some moments before each broker applies it."""
    end = time.monotonic() + APPLIED_S_MAX
    while (there := {b for b in _bindings(admin) or () if b.principal.removeprefix(PRINCIPAL) in ROLES}) != wanted:
        if time.monotonic() > end:
            example = min(map(_sentence, there ^ wanted))
            raise LogUnavailable(
                f"{APPLIED_S_MAX:.0f} s after its access-control lists were changed the broker has {len(there ^ wanted)} others than it "
                f"should, for example: {example}"
            )
        time.sleep(LISTED_POLL_S)


def _binding(grant: Grant) -> AclBinding:
    return AclBinding(
        ResourceType[grant.resource.upper()],
        grant.name,
        ResourcePatternType.PREFIXED if grant.prefix else ResourcePatternType.LITERAL,
        PRINCIPAL + grant.role,
        EVERY,  # from whichever address
        AclOperation[grant.operation.upper()],
        AclPermissionType.ALLOW,
    )


def _filter_of(b: Any) -> AclBindingFilter:  # an AclBinding, whose own types allow numbers and text for each word
    return AclBindingFilter(b.restype, b.name, b.resource_pattern_type, b.principal, b.host, b.operation, b.permission_type)


def _sentence(b: Any) -> str:
    which = "names that begin with " if b.resource_pattern_type == ResourcePatternType.PREFIXED else ""
    permission = "may" if b.permission_type == AclPermissionType.ALLOW else "may not"
    return f"{b.principal.removeprefix(PRINCIPAL)} {permission} {b.operation.name.lower()} {b.restype.name.lower()} {which}{b.name}"
