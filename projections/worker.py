"""One Faust worker: the log's topics into their tables, each through its own sink. `python -m projections.worker --index 0`

Workers share one group: any number of them divide the partitions among themselves. One that fails dies and is started again; what
it had not finished is read again from where the tables end.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import threading
import time

from events.facts.topic_access import worker_group
from events.log.client import Reader, Writer
from events.log.schemas import open_codec
from events.log.sign_in import ends_when_denied
from events.log.topic_admin import check_group
from events.process.health import serve_health
from events.process.json_logging import start_logging
from events.process.settings import Settings
from events.schema.codec import Codec
from projections.catalog.record_alerts import RecordAlerts, StallAlerts, start_rounds
from projections.catalog.sink import HISTORY_TOPICS, HistorySink
from projections.dead_letters.forged_alerts import ForgedAlerts
from projections.dead_letters.sink import DeadLetterPublisher, DeadLetterSink
from projections.ingest.chunks import ChunkWorker
from projections.ingest.clickhouse import ClickHouse
from projections.ingest.membership import MEMBERSHIP
from projections.ingest.sink import Sink
from projections.ingest.table_offsets import first_missing
from projections.usage.insert_plans import InsertPlans
from projections.usage.sink import UsageSink

logger = logging.getLogger(__name__)
PATIENCE_S = 60.0
"""How long a worker waits for a ClickHouse that is away before it lets its supervisor try."""
SWEEP_S = 30.0
"""Between two searches for cycles of garbage."""


def sinks(settings: Settings, codec: Codec, writer: Writer, name: str) -> list[Sink]:
    """Every fold that a worker runs. Each has its own readers: a reader serves one thread."""
    # A try must be over, one way or the other, while the partition is still ours, and none begins later (K8).
    ensure_member, publish_dead_letters = MEMBERSHIP.ensure_member, DeadLetterPublisher(writer, codec, "projections").publish
    clickhouse = ClickHouse(settings, patience_s=PATIENCE_S, answer_s_max=settings.worker_session_s / 2, before_try=ensure_member)
    usage_reader, dead_letters_reader = Reader(settings, f"{name}-usage"), Reader(settings, f"{name}-dead-letters")
    usage = UsageSink(
        clickhouse,
        InsertPlans(Reader(settings, f"{name}-schemas"), codec.schemas),
        lambda partition, fence: first_missing(clickhouse, usage_reader, "usage", "usage", partition, fence=fence),
        publish_dead_letters,
        ensure_member,
        rows_max=settings.chunk_rows_max,
        wait_s=settings.chunk_wait_s,
    )
    dead_letters = DeadLetterSink(
        clickhouse,
        codec,
        lambda table, partition, fence: first_missing(clickhouse, dead_letters_reader, table, "dead-letters", partition, fence=fence),
        ensure_member,
    )
    stalls = stall_alerts(settings, codec, writer)
    folds = [
        HistorySink(topic, codec, clickhouse, Reader(settings, f"{name}-{topic}"), publish_dead_letters, ensure_member, stalls)
        for topic in HISTORY_TOPICS
    ]
    return [usage, dead_letters, *folds]


def stall_alerts(settings: Settings, codec: Codec, writer: Writer) -> StallAlerts:
    clickhouse = ClickHouse(settings)
    return StallAlerts(clickhouse, RecordAlerts(clickhouse, codec, writer))


def _collect_rarely() -> None:
    """A hundred thousand records are alive at once and none is in a cycle: looking for cycles after so many allocations costs a tenth of the
    worker's time, looking twice a minute nothing."""
    gc.freeze()
    gc.disable()

    def sweep() -> None:
        while True:
            time.sleep(SWEEP_S)
            gc.collect()

    threading.Thread(target=sweep, name="sweep", daemon=True).start()


@ends_when_denied
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=int, default=0, help="which worker of this stack, from 0")
    index = parser.parse_args().index
    name = f"worker-{index}"
    start_logging(name)
    settings = Settings()
    for chatty in ("faust", "mode"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    reader = Reader(settings, name)
    codec, log_id = open_codec(settings, reader)
    reader.close()
    logger.info("folding log %s", log_id)
    writer = Writer(settings, name)
    _collect_rarely()
    check_group(settings, worker_group(settings.stack))
    worker = ChunkWorker(settings, worker_group(settings.stack), f"{settings.stack}-{name}", sinks(settings, codec, writer, name))
    serve_health(settings.host, settings.worker_health_port(index), worker.state)
    if index == 0:  # one is enough
        forged = ForgedAlerts(ClickHouse(settings), Reader(settings, f"{name}-alerts"), codec, writer)
        start_rounds(forged.resolve, stall_alerts(settings, codec, writer).resolve)
    worker.run()


if __name__ == "__main__":
    sys.exit(main())
