"""Makes an empty stack ready for facts: topics and who may use them, schemas on registry and log, tables. Safe to run again; the launcher runs it at every start."""

from __future__ import annotations

import logging
import sys
import time

from events.log.client import LogBroken, LogMismatch, LogUnavailable, Reader, Writer
from events.log.schemas import publish
from events.log.sign_in import LogDenied
from events.log.topic_admin import apply_access, apply_topics, check_partitions
from events.process.json_logging import start_logging
from events.process.passwords import as_set_up
from events.process.settings import Settings
from events.schema.registry import IncompatibleSchema, RegistryUnavailable
from projections.ingest.clickhouse import ClickHouseError, ClickHouseUnavailable
from projections.tables import apply_tables

logger = logging.getLogger(__name__)
PREPARE_S_MAX = 180.0
"""The registry, which may take two minutes to start, may have begun just before."""
AGAIN_S = 0.2


def prepare(settings: Settings) -> None:
    """Log and tables. Raises LogUnavailable, RegistryUnavailable when a part stays away, LogMismatch or IncompatibleSchema when it is the wrong
    one, LogDenied when `settings` name a role that is not set-up's."""
    prepare_log(settings)
    tables = apply_tables(settings)
    logger.info("tables are there", extra={"tables": tables})


def prepare_log(settings: Settings) -> None:
    """Topics, rights and schemas: what a fact needs to be written."""
    made, changed = apply_topics(settings), apply_access(settings)
    check_partitions(settings)
    writer, reader = Writer(settings, "prepare"), Reader(settings, "prepare")
    try:
        subjects = publish(settings, writer, reader)
    finally:
        writer.close()
        reader.close()
    logger.info("the log is there", extra={"topics": made, "rights_changed": len(changed), "schemas": len(subjects)})


def main() -> int:
    start_logging("prepare")
    settings, end = as_set_up(Settings()), time.monotonic() + PREPARE_S_MAX
    while True:
        try:
            prepare(settings)
            return 0
        except (LogMismatch, IncompatibleSchema) as e:
            logger.error("log, registry and this program do not belong together, nothing was changed: %s (docs/operations.md)", e)
            return 2
        except LogDenied as e:
            logger.error("nothing was changed: %s", e)
            return 2
        except ClickHouseError as e:
            logger.error("ClickHouse refused a table (code %s), the log is there: %s. Look at `modelmarket logs clickhouse`", e.code, e)
            return 2
        except (LogUnavailable, RegistryUnavailable, ClickHouseUnavailable, LogBroken) as e:
            if time.monotonic() > end:
                logger.error("preparation stops after %.0f s: %s. `modelmarket status` says which part is not healthy", PREPARE_S_MAX, e)
                return 1
            logger.warning("what preparation needs does not answer yet, waiting: %s", e)
            time.sleep(AGAIN_S)


if __name__ == "__main__":
    sys.exit(main())
