"""The log: append a record and know where it stands; read records by coordinate. The client of confluent_kafka for records.

Every producer is idempotent, gapless and places keys by murmur2 (K1); no record is ever given up on: what cannot be sent
waits, and whoever waits for it decides how long. Readers get their start as an argument and keep no position in Kafka.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, OffsetSpec  # pyright: ignore[reportPrivateImportUsage]

from events.facts.topic_access import READER_GROUPS
from events.facts.topics import TOPICS
from events.log.record import Coordinate, Headers, Record
from events.log.sign_in import Denials, client_config, denial
from events.process.json_logging import ConnectionWarnings
from events.process.settings import Settings

PARTITIONER = "murmur2_random"
QUEUE_RECORDS_MAX = 100_000
"""Records a producer holds unacknowledged: a minute of a busy gateway; past it appending is refused, not buffered."""
RECORD_BYTES_MAX = 1 << 20
CALL_S_MAX = 10.0
"""Longest a metadata or admin call may take."""
LEADERS_S_MAX = 2.0
"""Longest a new assignment waits for the leaders of its topic; without them it begins all the same, and later."""

BROKER_SILENT_S_MAX = 5.0
"""How long a broker may leave a request unanswered before its connection is given up and another one is asked who leads. A broker that died
closes its connections; a host that hangs or is cut off does not, and with the client's default, 60 s, everybody waited so long for it."""

CLIENT_LOG_S = 10.0
"""While a broker is away librdkafka says so forty times a second; once in this time is enough."""


class _Throttled(logging.Filter):
    """Lets each kind of message through once in a while."""

    def __init__(self) -> None:
        super().__init__()
        self._last_logged_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = record.getMessage().split(" ", 1)[0], time.monotonic()
        if now - self._last_logged_s.get(kind, -CLIENT_LOG_S) < CLIENT_LOG_S:
            return False
        self._last_logged_s[kind] = now
        return True


client_log = logging.getLogger("librdkafka")
client_log.addFilter(_Throttled())
client_log.addFilter(ConnectionWarnings("FAIL ", "ERROR "))  # what cannot be mended by waiting comes as an error of the call, and as FATAL
client_log.addHandler(logging.NullHandler())  # processes log it as JSON lines; on a command line it is noise

Delivered = Callable[[Coordinate | None, Exception | None], None]


class LogUnavailable(Exception):
    """Kafka did not answer in time. Transient: wait and try again."""


class LogFull(LogUnavailable):
    """Too many records wait for Kafka; nothing was taken."""


class LogBroken(Exception):
    """This producer can not go on without a gap: the process must end and start anew."""


class LogMismatch(Exception):
    """This is not the log this code was made for; nothing may be written."""


class Writer:
    """Appends in order and reports when the log has acknowledged. One thread per writer runs the deliveries."""

    def __init__(self, settings: Settings, client_id: str, *, linger_ms: float = 0.3, extra: Mapping[str, Any] | None = None) -> None:
        self.fatal: Exception | None = None
        self.away = False
        """No broker could be reached; until something is delivered or `probe` finds one."""
        self._waiting: dict[int, float] = {}  # ticket → when it was appended, oldest first
        self._tickets = count(1)  # one step, whichever threads append
        self._after_deliveries: Callable[[], None] | None = None
        self._settings = settings
        config = client_config(settings) | {
            "client.id": client_id,
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "acks": "all",
            "partitioner": PARTITIONER,
            "linger.ms": linger_ms,
            "message.timeout.ms": 0,  # never: a record that times out is not covered by the gapless guarantee
            # One small record must not wait in the socket for others: alone it is acknowledged in half a millisecond, not in three.
            "socket.nagle.disable": True,
            "message.max.bytes": RECORD_BYTES_MAX,
            "queue.buffering.max.messages": QUEUE_RECORDS_MAX,
            "socket.timeout.ms": round(1000 * BROKER_SILENT_S_MAX),
            "error_cb": self._on_error,
            **(extra or {}),
        }
        gapless = config["enable.idempotence"] and config["enable.gapless.guarantee"] and config["message.timeout.ms"] == 0
        if config["partitioner"] != PARTITIONER or not gapless or "transactional.id" in config:
            raise LogMismatch(f"a producer of this log is gapless, gives up on no record, uses {PARTITIONER} and no transactions")
        self._producer = ck.Producer(config, logger=client_log)
        self._open = True
        self._thread = threading.Thread(target=self._run, name=f"log-writer-{client_id}", daemon=True)
        self._thread.start()

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers | None = None, partition: int | None = None
    ) -> Future[Coordinate]:
        """The future of the coordinate. Raises LogFull or LogBroken; nothing was taken then."""
        future: Future[Coordinate] = Future()

        def done(at: Coordinate | None, error: Exception | None) -> None:
            if error is not None:
                future.set_exception(error)
            elif at is not None:
                future.set_result(at)

        self.append_then(done, topic, key, value, headers, partition)
        return future

    def append_then(
        self,
        delivered: Delivered,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int | None = None,
    ) -> None:
        """`delivered(coordinate, error)` is called from the writer's thread: the hot path, without a future."""
        if self.fatal is not None:
            raise LogBroken(str(self.fatal))
        ticket = next(self._tickets)

        def on_delivery(error: ck.KafkaError | None, message: ck.Message) -> None:
            self._waiting.pop(ticket, None)
            if error is None:
                self.away = False
                partition_, offset = message.partition(), message.offset()
                assert partition_ is not None and offset is not None
                delivered(Coordinate(topic, partition_, offset), None)
            else:
                self.fatal = self.fatal or LogBroken(str(denial(self._settings, error, topic) or f"{topic}: {error}"))
                delivered(None, self.fatal)

        where: dict[str, Any] = {} if partition is None else {"partition": partition}
        self._waiting[ticket] = time.monotonic()
        try:
            self._producer.produce(
                topic, key=key, value=value, headers=list(headers.items()) if headers else None, on_delivery=on_delivery, **where
            )  # type: ignore[arg-type]
        except BufferError as e:
            self._waiting.pop(ticket, None)
            raise LogFull(f"{QUEUE_RECORDS_MAX} records wait for Kafka") from e
        except ck.KafkaException as e:
            self._waiting.pop(ticket, None)
            raise LogBroken(f"{topic}: {e}") from e

    def after_deliveries(self, callback: Callable[[], None]) -> None:
        """`callback` runs once after each round of deliveries, so that a loop is woken once and not per record."""
        self._after_deliveries = callback

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def oldest_wait_s(self) -> float:
        """How long the oldest unacknowledged record has waited: the sign that Kafka is away."""
        for at in list(self._waiting.values())[:1]:
            return time.monotonic() - at
        return 0.0

    def probe(self, timeout_s: float = 1.0) -> bool:
        """Asks a broker for metadata: how a writer with nothing to send learns that Kafka is back."""
        try:
            self._producer.list_topics(timeout=timeout_s)
        except ck.KafkaException:
            return False
        self.away = False
        return True

    def flush(self, timeout_s: float) -> bool:
        """True when everything appended is acknowledged."""
        try:
            return self._producer.flush(timeout_s) == 0
        except ck.KafkaException as e:  # a fatal error that the writer's thread has not met yet
            self._on_error(e.args[0])
            return False

    def close(self, timeout_s: float = 5.0) -> bool:
        done = self.flush(timeout_s)
        self._open = False
        self._thread.join(2)
        return done

    def _run(self) -> None:
        while self._open:
            try:
                came = self._producer.poll(0.1)
            except (
                ck.KafkaException
            ) as e:  # a fatal error is raised here and not passed to error_cb; the deliveries that it ends come afterwards
                self._on_error(e.args[0])
                continue
            if came and self._after_deliveries is not None:
                self._after_deliveries()

    def _on_error(self, error: ck.KafkaError) -> None:
        if error.code() == ck.KafkaError._ALL_BROKERS_DOWN:  # pyright: ignore[reportPrivateUsage]
            self.away = True
        denied = denial(self._settings, error)
        if error.fatal() or denied is not None:
            self.fatal = self.fatal or LogBroken(str(denied or error))


class Reader:
    """Reads records from given offsets. No group, no commit: the position is the caller's."""

    def __init__(self, settings: Settings, client_id: str = "reader") -> None:
        self.settings = settings
        self._denials = Denials(settings)
        silent: dict[str, Any] = {"socket.timeout.ms": round(1000 * BROKER_SILENT_S_MAX)}
        self._config: dict[str, Any] = client_config(settings) | silent | {"client.id": client_id, "error_cb": self._denials.on_error}
        self._admin: AdminClient | None = None
        self._known: set[str] = set()
        self._consumer = ck.Consumer(
            self._config
            | {
                "group.id": f"{READER_GROUPS}{client_id}",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_uncommitted",
                "fetch.wait.max.ms": 100,  # new records end the wait at once; a new assignment waits this long
                "fetch.queue.backoff.ms": 20,
                "queued.max.messages.kbytes": 65536,
            },
            logger=client_log,
        )

    def assign(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Read from these offsets on, each (topic, partition) → offset."""
        self._consumer.assign([ck.TopicPartition(t, p, o) for (t, p), o in positions.items()])
        for topic in {t for t, _ in positions} - self._known:
            # The client asks for the leaders of a topic it has not read before once a second; asked outright it knows them at once.
            try:
                self._consumer.list_topics(topic, timeout=LEADERS_S_MAX)
            except ck.KafkaException:
                return  # it will ask by itself
            self._known.add(topic)

    def poll(self, records_max: int = 5000, timeout_s: float = 0.5) -> list[Record]:
        """What has come, up to `records_max`. Raises LogMismatch when an offset is not there (any more), and LogDenied."""
        out: list[Record] = []
        # A full batch is never waited for: the first record ends the wait, and what has come with it is taken along.
        messages = self._consumer.consume(1, timeout_s)
        self._denials.check()
        if messages:
            messages += self._consumer.consume(records_max - 1, 0)
        for m in messages:
            error = m.error()
            if error is not None:
                if error.code() in (ck.KafkaError.OFFSET_OUT_OF_RANGE, ck.KafkaError._AUTO_OFFSET_RESET):  # pyright: ignore[reportPrivateUsage]
                    raise LogMismatch(f"{m.topic()}/{m.partition()}: {error.str()}")
                self._denials.check(error, str(m.topic()))
                continue  # transient: the client reconnects by itself
            out.append(_record(m))
        return out

    def end_offsets(self, *topics: str) -> dict[tuple[str, int], int]:
        """The next offset to be written, per partition."""
        return {tp: high for tp, (_, high) in self.bounds(*topics).items()}

    def bounds(self, *topics: str) -> dict[tuple[str, int], tuple[int, int]]:
        """(first offset kept, next offset to be written) per partition."""
        partitions = [(topic, p) for topic in topics for p in range(TOPICS[topic].partitions)]
        end = time.monotonic() + CALL_S_MAX
        while True:
            try:
                low, high = (self._offsets(partitions, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
                return {tp: (low[tp], high[tp]) for tp in partitions}
            except (ck.KafkaException, TimeoutError) as e:  # a new topic has no leader for a moment
                self._check_denied(e)
                self._admin = None  # it asks the leaders of before a broker's restart for ever; a new one asks who leads now
                if time.monotonic() > end:
                    raise LogUnavailable(f"ends of {', '.join(topics)}: {e}") from e
                time.sleep(0.05)

    def _check_denied(self, failure: Exception) -> None:
        if self._admin is not None:
            self._admin.poll(0)  # calls error_cb
        self._denials.check(failure.args[0] if isinstance(failure, ck.KafkaException) else None)

    def _offsets(self, partitions: Sequence[tuple[str, int]], spec: Any) -> dict[tuple[str, int], int]:
        """Over a connection of its own: on the consumer's the question would stand behind a fetch that waits for records."""
        if self._admin is None:
            self._admin = AdminClient(self._config, logger=client_log)
        asked = self._admin.list_offsets({ck.TopicPartition(t, p): spec for t, p in partitions}, request_timeout=CALL_S_MAX)
        # Each answer is waited for: a client that is dropped while it still asks may be destroyed in its own thread, which ends the process.
        return {(tp.topic, tp.partition): future.result(CALL_S_MAX + 1).offset for tp, future in asked.items()}

    def record_at(self, topic: str, partition: int, offset: int, timeout_s: float = CALL_S_MAX) -> Record:
        """One record. Raises LogMismatch when the log does not have it. Ends the current assignment."""
        self.assign({(topic, partition): offset})
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for record in self.poll(1, 0.2):
                self._consumer.unassign()  # else a fetch goes on waiting, and the next assignment behind it
                if record.offset != offset:
                    raise LogMismatch(f"{topic}/{partition}/{offset} is not there; the next record is at {record.offset}")
                return record
        raise LogUnavailable(f"{topic}/{partition}/{offset} did not come within {timeout_s} s")

    def read(
        self, topic: str, start: Mapping[int, int] | None = None, end: Mapping[int, int] | None = None, timeout_s: float = 60
    ) -> Iterable[Record]:
        """Every record of a topic below `end` (default: its end now). Raises LogUnavailable when nothing comes for `timeout_s`."""
        bounds = self.bounds(topic)
        left: dict[int, int] = {}
        where: dict[tuple[str, int], int] = {}
        for (t, p), (low, high) in bounds.items():
            first = max(low, (start or {}).get(p, low))
            last = min(high, (end or {}).get(p, high))
            if first < last:
                where[t, p], left[p] = first, last
        if not where:
            return
        self.assign(where)
        heard = time.monotonic()
        while left:
            records = self.poll()
            if not records and time.monotonic() - heard > timeout_s:
                raise LogUnavailable(f"{topic}: nothing came for {timeout_s} s, {len(left)} partitions unread")
            for r in records:
                heard = time.monotonic()
                if r.partition in left and r.offset < left[r.partition]:
                    yield r
                if r.partition in left and r.offset >= left[r.partition] - 1:
                    del left[r.partition]
        self._consumer.unassign()

    def close(self) -> None:
        self._consumer.close()


def _record(m: ck.Message) -> Record:
    headers = {k: v for k, v in (m.headers() or []) if isinstance(v, bytes)}
    key, value = m.key(), m.value()
    return Record(
        m.topic() or "",
        m.partition() or 0,
        m.offset() or 0,
        m.timestamp()[1],
        key.encode() if isinstance(key, str) else key,
        value.encode() if isinstance(value, str) else value,
        headers,
    )
