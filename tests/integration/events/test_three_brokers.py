"""A cluster of three brokers, as a production has it: one of them dies under the load of a gateway, and nothing is lost, doubled or refused
for long (K12, K13)."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from signal import SIGCONT, SIGSTOP

import confluent_kafka as ck
import pytest

from events.facts.fact import NO_HASH
from events.facts.topics import TOPICS
from events.log.client import LogFull, LogUnavailable, Writer
from events.log.partitioner import partition_of
from events.log.record import Coordinate
from events.log.sign_in import client_config
from events.log.topic_admin import apply_access, apply_topics, topic_drift
from events.process.ids import new_id
from events.process.passwords import OPERATOR
from events.process.signing_keys import SigningKey
from events.producers.epoch_key import EpochCertificate
from serving.metering.meter import Meter, NotAcknowledged, ProducerEpoch
from tests.support.polling import eventually
from tests.support.servers.kafka_cluster import KafkaCluster, running_kafka_cluster
from tests.support.todays_codec import todays_codec

REFUSED_S_MAX = 10.0
ACKNOWLEDGE_S_MAX = 5.0
TENANTS = [f"tenant-{n}" for n in range(12)]
PAUSE_S = 0.01
"""Of each tenant between two calls: about 500 facts a second."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with running_kafka_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        apply_topics(cluster.settings)
        apply_access(cluster.settings)
        yield cluster


@dataclass
class Load:
    """What a gateway's callers saw."""

    answered: dict[str, Coordinate] = field(default_factory=dict[str, Coordinate])
    """Event → its receipt."""
    voided: set[str] = field(default_factory=set[str])
    refused_at: list[float] = field(default_factory=list[float])
    waited_s_max: float = 0.0
    """Longest time that a call waited for its acknowledgement."""

    def refused_s(self) -> float:
        """From the first refusal to the last."""
        return max(self.refused_at) - min(self.refused_at) if self.refused_at else 0.0

    def sentence(self) -> str:
        waited = f"the longest wait of one was {self.waited_s_max:.1f} s"
        return f"{len(self.answered)} calls answered; others were refused for {self.refused_s():.1f} s, {waited}"


class Gateway:
    """The metering of one, and callers who each wait for their answer before they ask again."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self.load, self._go_on = Load(), True
        self._writer = Writer(cluster.settings_of("gateway"), "gateway")
        epoch = ProducerEpoch("gateway", f"epoch-{new_id()}", "log", "local")
        self.epoch = epoch.epoch_id
        self._meter = Meter(self._writer, todays_codec(), epoch, SigningKey.new(), acknowledge_s_max=ACKNOWLEDGE_S_MAX)

    async def open(self) -> None:
        await self._meter.open(EpochCertificate(b"k" * 32, "nobody", b"s" * 64))
        self._callers = [asyncio.create_task(self._call(tenant)) for tenant in TENANTS]

    async def answers(self, more: int) -> None:
        """Waits until so many more calls are answered, of each tenant some."""
        due = len(self.load.answered) + more
        async with asyncio.timeout(120):
            while len(self.load.answered) < due:
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        self._go_on = False
        await asyncio.gather(*self._callers)
        await self._meter.close()
        await asyncio.to_thread(self._writer.close, 60)

    async def _call(self, tenant: str) -> None:
        load = self.load
        while self._go_on:
            await asyncio.sleep(PAUSE_S)
            event_id = new_id()
            if self._meter.log_unavailable:
                load.refused_at.append(time.monotonic())
                continue
            try:
                fact = self._meter.record_settled(tenant, event_id, dict(BODY))
            except (LogUnavailable, LogFull):
                load.refused_at.append(time.monotonic())
                continue
            try:
                load.answered[event_id] = await self._meter.acknowledged(fact)
                load.waited_s_max = max(load.waited_s_max, time.monotonic() - fact.appended_at)
            except NotAcknowledged:
                load.refused_at.append(time.monotonic())
                load.voided.add(event_id)
                self._meter.void(fact, "not_acknowledged")


BODY = {
    "key_id": "key",
    "user": "user",
    "region": "local",
    "provider": "acme",
    "model": "model-vision-core-digits",
    "model_version": "1.0.0",
    "deployment": "d",
    "operation": "infer",
    "attempt": 1,
    "outcome": "succeeded",
    "status": 200,
    "latency_us": 1000,
    "batch_size": 1,
}


def _records(cluster: KafkaCluster) -> list[ck.Message]:
    """Topic `usage` from its first record to its end, by a client of nobody's but Kafka's."""
    config = client_config(cluster.settings_of(OPERATOR)) | {"group.id": "console-consumer-count", "enable.partition.eof": True}
    consumer = ck.Consumer(config | {"enable.auto.commit": False, "auto.offset.reset": "error", "check.crcs": True})
    left = set(range(TOPICS["usage"].partitions))
    consumer.assign([ck.TopicPartition("usage", p, 0) for p in left])
    found: list[ck.Message] = []
    end = time.monotonic() + 120
    while left:
        assert time.monotonic() < end, f"partitions {left} were not read to their ends"
        for message in consumer.consume(5000, 1):
            error = message.error()
            if error is None:
                found.append(message)
            elif error.code() == ck.KafkaError._PARTITION_EOF:  # pyright: ignore[reportPrivateUsage]
                left.discard(int(message.partition() or 0))
    consumer.close()
    return found


def _check(cluster: KafkaCluster, gateway: Gateway) -> None:
    """Each answered call has exactly its record, where its receipt says; each tenant's chain is whole; what was refused is voided."""
    codec, chains, coordinates = (
        todays_codec(),
        defaultdict[str, list[tuple[int, bytes, bytes]]](list),
        defaultdict[str, list[Coordinate]](list),
    )
    voided: set[str] = set()
    for message in _records(cluster):
        value, partition, offset = message.value(), message.partition(), message.offset()
        assert isinstance(value, bytes) and partition is not None and offset is not None
        name, body = codec.decode(value)
        if body["epoch"] != gateway.epoch:
            continue
        assert message.key() == body["tenant"].encode() and partition == partition_of(body["tenant"].encode(), TOPICS["usage"].partitions)
        chains[body["tenant"]].append((body["sequence"], body["previous_sha256"], hashlib.sha256(value).digest()))
        coordinates[body["event_id"]].append(Coordinate("usage", partition, offset))
        if name == "InvocationVoided":
            voided.add(body["voided"])
    load = gateway.load
    wrong = {event: coordinates[event] for event, at in load.answered.items() if coordinates[event] != [at]}
    assert not wrong, f"answered calls whose record is lost, doubled or elsewhere: {wrong}"
    assert not [event for event, at in coordinates.items() if len(at) > 1], "a record is there twice"
    assert voided == load.voided
    for tenant, chain in chains.items():
        assert [sequence for sequence, _, _ in chain] == list(range(1, len(chain) + 1)), tenant
        assert [previous for _, previous, _ in chain] == [NO_HASH, *(own for _, _, own in chain[:-1])], tenant


def test_topics_have_three_replicas_of_which_two_must_have_a_record(cluster: KafkaCluster) -> None:
    assert topic_drift(cluster.settings) == []
    assert cluster.whole(*TOPICS)
    other = cluster.settings.model_copy(update={"kafka_min_insync": 3})
    assert any("min.insync.replicas=2" in sentence for sentence in topic_drift(other))
    fewer = cluster.settings.model_copy(update={"kafka_replication": 2})
    assert any("usage: 3 replicas, 2 are asked for" in sentence for sentence in topic_drift(fewer))


def test_the_leaders_broker_dies_under_load_and_nothing_is_lost_doubled_or_refused_for_more_than_ten_seconds(
    cluster: KafkaCluster, record_property: Callable[[str, object], None]
) -> None:
    load = asyncio.run(_under_load(cluster, cluster.leader("usage", 0)))
    record_property("one of three brokers killed", [load.sentence()])


def test_a_brokers_host_that_hangs_stops_nobody_for_more_than_ten_seconds(
    cluster: KafkaCluster, record_property: Callable[[str, object], None]
) -> None:
    """It closes no connection: only a client that gives up a silent one goes on."""
    load = asyncio.run(_under_load(cluster, cluster.leader("usage", 1), pause=True))
    record_property("one of three brokers paused", [load.sentence()])


async def _under_load(cluster: KafkaCluster, victim: int, *, pause: bool = False) -> Load:
    """`pause`: its host hangs instead, and wakes up again: no connection is closed."""
    gateway = Gateway(cluster)
    await gateway.open()
    await gateway.answers(1000)
    if pause:
        cluster.signal(victim, SIGSTOP)
    else:
        await asyncio.to_thread(cluster.kill, victim)
    led = range(TOPICS["usage"].partitions)
    await asyncio.to_thread(eventually, lambda: victim not in {cluster.leader("usage", p) for p in led}, "others lead its partitions")
    await gateway.answers(2000)
    if pause:
        cluster.signal(victim, SIGCONT)
    else:
        cluster.launch(victim)
    await asyncio.to_thread(eventually, lambda: cluster.whole("usage"), "every replica is in sync again")
    await gateway.answers(1000)
    await gateway.close()
    _check(cluster, gateway)
    refused_s = gateway.load.refused_s()
    assert refused_s <= REFUSED_S_MAX, f"calls were refused for {refused_s:.1f} s"
    return gateway.load


@pytest.mark.soak
@pytest.mark.parametrize("victim", [1, 2, 3])
@pytest.mark.parametrize("how", ["killed", "paused"])
def test_whichever_broker_is_killed_or_paused_nothing_is_lost(cluster: KafkaCluster, victim: int, how: str) -> None:
    asyncio.run(_under_load(cluster, victim, pause=how == "paused"))


@pytest.mark.soak
def test_the_active_controllers_broker_dies(cluster: KafkaCluster) -> None:
    asyncio.run(_under_load(cluster, cluster.controller()))
