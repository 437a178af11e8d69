"""Three Kafka brokers on this machine, with the users, rights and settings of a production; a test kills one or has it pause."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr

from events.log.sign_in import client_config
from events.process.passwords import SET_UP, kafka_password_file
from events.process.settings import Settings
from infra.launcher.jvm import Broker, kafka_command, kafka_folder, new_cluster_id, prepare_broker, write_users
from infra.launcher.paths import paths_of
from infra.launcher.ports import free_block
from tests.support.polling import eventually

BROKERS = 3
FIRST_PORT = 150
"""Of a stack's block: no part of a stack is there."""


class KafkaCluster:
    """Use `running_kafka_cluster`. `settings` sign in as set-up."""

    def __init__(self, base_port: int, folder: Path, **settings: Any) -> None:
        self._paths = paths_of(Settings(base_port=base_port, data=folder))
        own, first = kafka_folder(self._paths), base_port + FIRST_PORT
        self.brokers = {n: Broker(n, "127.0.0.1", first + 2 * n, first + 2 * n + 1, own / f"broker-{n}") for n in range(1, BROKERS + 1)}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        write_users(self._paths)
        self._given: dict[str, Any] = {"stack": "test", "base_port": base_port, "data": folder} | settings
        self.settings = self.settings_of(SET_UP)

    def settings_of(self, role: str) -> Settings:
        """Of a process that knows these brokers as a production's does: by address, role and password."""
        return Settings(
            kafka_bootstrap=",".join(f"{b.host}:{b.port}" for b in self.brokers.values()),
            kafka_security_protocol="SASL_PLAINTEXT",
            kafka_sasl_username=role,
            kafka_sasl_password=SecretStr(kafka_password_file(self._paths.folder, role).read_text().strip()),
            kafka_replication=BROKERS,
            kafka_min_insync=BROKERS - 1,
            **self._given,
        )

    def start(self) -> None:
        cluster, cluster_id = list(self.brokers.values()), new_cluster_id()
        with ThreadPoolExecutor(BROKERS) as pool:
            list(pool.map(lambda broker: prepare_broker(broker, cluster, cluster_id), cluster))
        for node_id in self.brokers:
            self.launch(node_id)
        self._admin = AdminClient(client_config(self.settings))
        eventually(lambda: len(self._metadata().brokers) == BROKERS, "the brokers know each other")

    def launch(self, node_id: int) -> None:
        broker = self.brokers[node_id]
        with (broker.folder / "broker.log").open("ab") as log:
            self._processes[node_id] = subprocess.Popen(kafka_command(self._paths, broker.folder), env=os.environ, stdout=log, stderr=log)

    def signal(self, node_id: int, number: signal.Signals) -> None:
        self._processes[node_id].send_signal(number)

    def kill(self, node_id: int) -> None:
        self._processes[node_id].kill()
        self._processes[node_id].wait(10)

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait(10)

    def leader(self, topic: str, partition: int = 0) -> int:
        return int(self._metadata().topics[topic].partitions[partition].leader)

    def whole(self, *topics: str) -> bool:
        """Every replica of these topics is in sync."""
        known = self._metadata().topics
        return all(len(p.isrs) == len(p.replicas) == BROKERS for topic in topics for p in known[topic].partitions.values())

    def controller(self) -> int:
        """The broker whose controller is active."""
        return int(self._admin.describe_cluster(request_timeout=3).result(4).controller.id)

    def _metadata(self) -> Any:
        try:
            return self._admin.list_topics(timeout=3)
        except KafkaException:
            self._admin = AdminClient(client_config(self.settings))  # the one before asks brokers that are gone
            raise


@contextmanager
def running_kafka_cluster(folder: Path, **settings: Any) -> Generator[KafkaCluster]:
    with free_block() as base_port:
        cluster = KafkaCluster(base_port, folder, **settings)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.end()
