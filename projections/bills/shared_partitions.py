"""Which partitions of `usage` are this biller's: those that live divide all of them among themselves, as members of one group of Kafka's.

Membership is all that the group is for: nothing is read and no position is kept by it. Two billers may take one partition for theirs for a
moment; they make the same bytes (K21). Where one ends without a word its partitions are another's within ten seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import confluent_kafka as ck

from events.facts.topic_access import biller_group
from events.log.client import client_log
from events.log.sign_in import Denials, client_config
from events.process.settings import Settings

logger = logging.getLogger(__name__)
SESSION_MS = 6_000
"""The least that brokers allow: so long a biller that says nothing more is a member."""
POLL_S = 0.2
STANDSTILL_S_MAX = 900.0
"""A biller that finishes nothing for so long gives its partitions up: reading a partition from offset 0 takes minutes."""
UNPOLLED_MS_MAX = 30_000


class SharedPartitions:
    """One member. A thread keeps the membership; whoever works says so (`working`), else the partitions become another's."""

    def __init__(self, settings: Settings) -> None:
        self._denials = Denials(settings)
        self._worked, self._open, self._mine = time.monotonic(), True, frozenset[int]()
        self._consumer = ck.Consumer(
            client_config(settings)
            | {
                "client.id": "biller-member",
                "group.id": biller_group(settings.stack),
                "session.timeout.ms": SESSION_MS,
                "heartbeat.interval.ms": SESSION_MS // 6,
                "max.poll.interval.ms": UNPOLLED_MS_MAX,
                "partition.assignment.strategy": "roundrobin",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "latest",
                "error_cb": self._denials.on_error,
            },
            logger=client_log,
        )
        self._consumer.subscribe(["usage"], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)
        self._thread = threading.Thread(target=self._run, name="biller-member", daemon=True)
        self._thread.start()

    def working(self) -> frozenset[int]:
        """The partitions that are this biller's now, which goes on working. Raises LogDenied."""
        self._denials.check()
        self._worked = time.monotonic()
        return self._mine

    def close(self) -> None:
        """Leaves at once: the others need not wait for the session's end."""
        self._open = False
        self._thread.join(2 * POLL_S + 1)
        self._consumer.close()

    def _run(self) -> None:
        while self._open:
            if time.monotonic() - self._worked > STANDSTILL_S_MAX:
                time.sleep(POLL_S)
                continue
            message = self._consumer.poll(POLL_S)
            error = message.error() if message is not None else None
            if error is not None:
                self._denials.on_error(error)

    def _assigned(self, consumer: Any, partitions: list[ck.TopicPartition]) -> None:
        consumer.assign([ck.TopicPartition(p.topic, p.partition, ck.OFFSET_END) for p in partitions])
        consumer.pause(partitions)
        self._mine = frozenset(p.partition for p in partitions)
        logger.info("this biller has the partitions %s of usage", sorted(self._mine))

    def _revoked(self, consumer: Any, _partitions: list[ck.TopicPartition]) -> None:
        self._mine = frozenset()
        consumer.unassign()
