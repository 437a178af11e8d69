"""The private hooks of Faust and aiokafka in `projections/ingest/chunks.py`: these tests fail when an upgrade changes one of them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import inspect
import ssl
from importlib.metadata import version

import aiokafka
import mode
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.structs import ConsumerRecord
from faust.tables import recovery
from faust.tables.manager import TableManager
from faust.transport import consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import ConsumerMessage
from faust.utils.urls import urllist

from events.process.settings import Settings
from projections.ingest.chunks import credentials_of


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_installed_versions_are_those_the_transport_was_tested_with() -> None:
    assert (version("faust-streaming"), version("aiokafka")) == ("0.15.3", "0.14.0"), (
        "run tests/integration/projections/test_usage_pipeline.py, then change this line"
    )


def test_a_fetch_hands_over_lists_of_records_by_partition() -> None:
    assert parameters(driver.AIOKafkaConsumerThread._fetch_records) == ["self", "consumer", "active_partitions", "timeout", "max_records"]
    assert "fetched_records" in inspect.getsource(driver.AIOKafkaConsumerThread._fetch_records)
    assert {"topic", "partition", "offset", "timestamp", "timestamp_type", "key", "value", "headers", "checksum"} <= set(
        ConsumerRecord.__dataclass_fields__
    )


def test_the_worker_consumer_can_be_told_to_wait_for_more() -> None:
    assert parameters(driver.AIOKafkaConsumerThread._create_worker_consumer) == ["self", "transport"]
    source = inspect.getsource(aiokafka.AIOKafkaConsumer.start)
    assert "self._fetch_min_bytes" in source and "self._fetch_max_wait_ms" in source, "they are read when the consumer starts"


def test_the_consumer_makes_messages_and_commits_through_the_hooks_we_replace() -> None:
    assert parameters(driver.Consumer._to_message) == ["self", "tp", "record"]
    assert parameters(consumer.Consumer._new_offset) == ["self", "tp"]
    assert parameters(consumer.Consumer._add_gap) == ["self", "tp", "offset_from", "offset_to"]
    assert "self._new_offset(" in inspect.getsource(consumer.Consumer)
    assert "acked_index" in inspect.getsource(consumer.Consumer.ack)
    names = ["topic", "partition", "offset", "timestamp", "timestamp_type", "headers", "key", "value", "checksum"]
    assert parameters(ConsumerMessage.__init__)[1:10] == names
    assert driver.Transport.Consumer is driver.Consumer


def test_positions_come_from_seek_to_committed_after_every_assignment() -> None:
    assert "await self.seek_to_committed()" in inspect.getsource(consumer.Consumer.perform_seek)
    assert "consumer.perform_seek()" in inspect.getsource(recovery.Recovery._resume_streams)
    assert "except RebalanceAgain" in inspect.getsource(recovery), "a position that came too late is let go"
    assert parameters(consumer.ThreadDelegateConsumer.seek_wait) == ["self", "partitions"]
    assert parameters(consumer.Consumer.on_partitions_revoked) == ["self", "revoked"]
    seek = inspect.getsource(driver.AIOKafkaConsumerThread._seek_wait)
    assert "consumer.seek(tp, offset)" in seek and "_read_offset[tp] = offset" in seek


def test_a_worker_waits_for_nothing_at_its_start_and_its_end() -> None:
    start = inspect.getsource(TableManager.on_start)
    assert [line.strip() for line in start.splitlines() if "await" in line] == [
        "await self.sleep(1.0)",
        "await self._update_channels()",
        "await self.recovery.start()",
    ]
    assert "self._gather_all()" in inspect.getsource(mode.Worker._shutdown_loop)
    assert "self._sentinel_task()" in inspect.getsource(mode.Worker._shutdown_loop)


def test_contact_with_the_group_is_seen_in_heartbeat_and_sync() -> None:
    assert inspect.iscoroutinefunction(GroupCoordinator._do_heartbeat) and parameters(GroupCoordinator._do_heartbeat) == ["self"]
    assert "return True" in inspect.getsource(GroupCoordinator._do_heartbeat)
    assert inspect.iscoroutinefunction(CoordinatorGroupRebalance._send_sync_group_request)
    assert parameters(CoordinatorGroupRebalance._send_sync_group_request) == ["self", "request"]


def test_a_worker_signs_in_as_the_settings_say() -> None:
    elsewhere = Settings(kafka_bootstrap="kafka.example:9092")
    assert driver.credentials_to_aiokafka_auth(credentials_of(elsewhere)) == {"security_protocol": "PLAINTEXT"}
    settings = Settings.model_validate(
        {
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": "SCRAM-SHA-512",
            "kafka_sasl_username": "market",
            "kafka_sasl_password": "secret",
        }
    )
    configured = dict(driver.credentials_to_aiokafka_auth(credentials_of(settings)))
    assert isinstance(configured.pop("ssl_context"), ssl.SSLContext)
    assert configured == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "market",
        "sasl_plain_password": "secret",
    }
    encrypted = Settings.model_validate({"kafka_security_protocol": "SSL"})
    assert driver.credentials_to_aiokafka_auth(credentials_of(encrypted))["security_protocol"] == "SSL"


def test_every_broker_of_the_settings_is_known_to_the_worker() -> None:
    assert driver.server_list(urllist("kafka://a:9092,b:9093"), 9092) == ["a:9092", "b:9093"]
