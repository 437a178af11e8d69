"""The same job as Faust's documentation does it: an agent takes batches, decodes each record and inserts the rows. The baseline."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import faust

from events.log.client import Reader
from events.log.schemas import open_codec
from events.process.settings import Settings
from projections.ingest.chunks import credentials_of
from projections.ingest.clickhouse import ClickHouse

TABLE, BATCH, WITHIN_S = "usage_stock", 1000, 0.5


def main() -> None:
    settings = Settings()
    codec, _ = open_codec(settings, Reader(settings, "stock"))
    clickhouse = ClickHouse(settings)
    faust_app = cast(Any, faust)
    app = faust_app.App(
        "stock-faust",
        broker=f"kafka://{settings.kafka}",
        broker_credentials=credentials_of(settings),
        store="memory://",
        datadir=str(settings.folder / "stock-faust"),
        value_serializer="raw",
        key_serializer="raw",
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
    )

    @app.agent(app.topic("usage", key_serializer="raw", value_serializer="raw"))
    async def insert(stream: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        async for values in stream.take(BATCH, within=WITHIN_S):
            rows = list[dict[str, Any]]()
            for value in values:
                _, body = codec.decode(value)
                rows.append({k: v.hex() if isinstance(v, bytes) else v for k, v in body.items()})
            await asyncio.get_running_loop().run_in_executor(None, clickhouse.insert_rows, TABLE, rows)

    sys.argv = ["stock", "worker", "-l", "warn", "--without-web"]
    app.main()


if __name__ == "__main__":
    main()
