"""Somebody who decides many small things, straight at the desk, and waits until a relay has sent them."""

from __future__ import annotations

import uuid

from commands.prices import decide as price_book
from commands.prices.decide import PublishPriceBook
from commands.processor.aggregates import BOOK, TENANT, Aggregates
from commands.processor.command_processor import Desk, Done, Task
from commands.processor.context import Origin
from commands.store.event_store import Store, open_store
from commands.store.generation import current_epoch
from commands.store.opening import open_epoch
from commands.tenants import decide as tenant
from commands.tenants.decide import CreateTenant
from events.facts.fact import BookId, TenantId, UserId, now_us
from events.facts.prices import Price
from events.log.client import Reader
from events.log.schemas import open_codec
from events.process.settings import Settings
from tests.integration.command_side import health, until


class Clerk:
    """Decides things, without HTTP."""

    def __init__(self, settings: Settings) -> None:
        reader = Reader(settings, "clerk")
        self.codec, self.log_id = open_codec(settings, reader)
        reader.close()
        self.store: Store = open_store(settings)
        if current_epoch(self.store) is None:
            open_epoch(self.store, self.codec, UserId("commands"))
        self.desk = Desk(self.store, self.codec, Aggregates(self.store, self.codec))

    def decide(self, count: int, size: int = 0) -> int:
        """That many tenants and a price book each; the store's end."""
        futures = []
        for _ in range(count):
            name = f"t{uuid.uuid4().hex[:12]}"
            create = CreateTenant(TenantId(name), "x" * size or name, BookId("standard"), "CNY", "UTC")
            prices = (Price(model="*", meter="calls", amount_micros=1),)
            book = PublishPriceBook(BookId(name), "CNY", None, prices)
            futures.append(
                self.desk.submit(Task(TENANT, name, lambda s, o, c=create: tenant.decide(s, c, o), _origin(), lambda _s, _f: {}))
            )
            futures.append(
                self.desk.submit(Task(BOOK, name, lambda s, o, c=book: price_book.decide(s, c, o), _origin(), lambda _s, _f: {}))
            )
        assert all(isinstance(f.result(60), Done) for f in futures)
        return self.store.last_position()

    def close(self) -> None:
        self.desk.close()
        self.store.close()


def _origin() -> Origin:
    return Origin(str(uuid.uuid4()), now_us(), UserId("clerk"), "", "")


def caught_up(settings: Settings, position: int) -> None:
    def there() -> bool:
        said = health(settings.relay_health_port)
        return said is not None and said["status"] == "ready" and said["position"] >= position and said["lag"] == 0

    until(there, f"relay at {position}")
