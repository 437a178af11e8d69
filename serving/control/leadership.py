"""One leader among the processes of one name, on however many hosts: the member of a consumer group that owns its only partition.

Kafka's coordinator decides who that is, and gives the partition to another member when it has not heard of the owner for SESSION_S (K8, K18).
A process that was paused does not know that yet: so whoever leads asks the coordinator before it writes, by a commit, which it takes from the
owner alone. Nothing is read, and no offset means anything.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
from concurrent.futures import Future
from itertools import count
from queue import SimpleQueue
from typing import Any

import confluent_kafka as ck

from events.facts.topic_access import leader_group
from events.log.client import BROKER_SILENT_S_MAX, client_log
from events.log.sign_in import Denials, client_config
from events.process.settings import Settings

logger = logging.getLogger(__name__)
TOPIC = "heartbeats"
"""Any topic of one partition will do; this one everybody reads."""
SESSION_S, HEARTBEAT_S = 6.0, 1.0
"""The shortest session that brokers allow by their own defaults: with a heartbeat's wait another takes over within 8 s."""
SURE_S_MAX = SESSION_S * 0.8
"""For how long after it was asked the coordinator gives our partition to nobody else."""
POLL_S = 0.05
"""How long a question waits for the thread that asks it."""


class NotLeader(Exception):
    """Another process may lead by now, or nobody can say. Nothing may be written."""


class Leadership:
    """Use as a context manager. `name`: of the work that one process at a time does, such as `controller`."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.name, self._denials, self._open = name, Denials(settings), True
        # The same for each process of this host and folder: a new one takes over from the one before at once, and that one is refused.
        member = hashlib.sha256(f"{socket.gethostname()} {settings.folder}".encode()).hexdigest()[:16]
        config: dict[str, Any] = client_config(settings) | {
            "client.id": f"{name}-leader",
            "group.id": leader_group(settings.stack, name),
            "group.instance.id": member,
            "session.timeout.ms": round(1000 * SESSION_S),
            "heartbeat.interval.ms": round(1000 * HEARTBEAT_S),
            "socket.timeout.ms": round(1000 * BROKER_SILENT_S_MAX),
            # A process that joins takes nothing from the one that leads.
            "partition.assignment.strategy": "cooperative-sticky",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "latest",
            "error_cb": self._denials.on_error,
            "on_commit": self._on_commit,
        }
        self._tickets = count(1)
        self._unasked = SimpleQueue[int]()
        self._asked = dict[int, Future[str]]()
        """By the offset that was committed to ask."""
        self._consumer = ck.Consumer(config, logger=client_log)
        self._leads = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-leadership", daemon=True)
        self._failure: Exception | None = None

    @property
    def leads(self) -> bool:
        """As far as this process has heard; `ensure` knows. Raises LogDenied."""
        self._denials.check()
        if self._failure is not None:
            raise self._failure
        return self._leads.is_set()

    def ensure(self) -> float:
        """Until when (`time.monotonic`) nobody else leads. Raises NotLeader, LogDenied."""
        asked, ticket, answer = time.monotonic(), next(self._tickets), Future[str]()
        if not self.leads:
            raise NotLeader(f"another {self.name} leads, or none yet")
        self._asked[ticket] = answer
        self._unasked.put(ticket)
        try:
            refused = answer.result(SURE_S_MAX)
        except TimeoutError:
            refused = f"no answer within {SURE_S_MAX:g} s"
        finally:
            del self._asked[ticket]
        if refused:
            raise NotLeader(f"Kafka does not say that this {self.name} leads: {refused}")
        return asked + SURE_S_MAX

    def _ask(self, ticket: int) -> None:
        """In the thread that polls: the client lets no other one commit while that waits. Not synchronously: that may last for ever."""
        try:
            self._consumer.commit(offsets=[ck.TopicPartition(TOPIC, 0, ticket)], asynchronous=True)
        except ck.KafkaException as e:
            self._answer(ticket, str(e))

    def _answer(self, ticket: int, refused: str) -> None:
        if (answer := self._asked.get(ticket)) is not None:
            answer.set_result(refused)

    def _on_commit(self, error: ck.KafkaError | None, partitions: list[ck.TopicPartition]) -> None:
        for partition in partitions:
            refused = error or partition.error
            self._answer(partition.offset, str(refused) if refused is not None else "")

    def __enter__(self) -> Leadership:
        self._consumer.subscribe([TOPIC], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join(5)
        self._consumer.close()
        self._leads.clear()

    def _run(self) -> None:
        try:
            while self._open:
                while not self._unasked.empty():
                    self._ask(self._unasked.get())
                message = self._consumer.poll(POLL_S)
                if message is not None and (error := message.error()) is not None:
                    self._denials.check(error, TOPIC)
                    if error.fatal():
                        raise NotLeader(f"this {self.name} has been replaced: {error.str()}")
        except Exception as e:  # whoever asks next is told
            self._leads.clear()
            self._failure = e

    def _assigned(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        if partitions:
            consumer.incremental_assign(partitions)
            consumer.pause(partitions)
            logger.info("this %s leads", self.name)
            self._leads.set()

    def _revoked(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        if partitions:
            logger.warning("this %s does not lead any more", self.name)
            self._leads.clear()
            consumer.incremental_unassign(partitions)
