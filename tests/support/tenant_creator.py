"""Creates tenants and price books straight at the command processor, without HTTP, and waits until a relay has sent them."""

from __future__ import annotations

import uuid

from commands.prices.decide import PublishPriceBook
from commands.prices.routes import PUBLISH
from commands.processor.aggregates import Aggregates
from commands.processor.command_handler import PendingCommand
from commands.processor.command_processor import CommandProcessor, Done
from commands.processor.context import CommandContext
from commands.store.event_store import Store, open_store
from commands.store.generation import current_generation
from commands.store.opening import open_generation
from commands.tenants.decide import CreateTenant, IssueApiKey, SetQuota
from commands.tenants.routes import CREATE, ISSUE_KEY, SET_QUOTA
from events.facts.accounts import KeyGrant, ResourceQuota, TenantTerms
from events.facts.fact import BookId, KeyId, TenantId, UserId
from events.facts.prices import Price
from events.log.client import Reader
from events.log.schemas import open_codec
from events.process.clock import now_us
from events.process.settings import Settings
from tests.support.polling import eventually, health


class TenantCreator:
    """A command processor of the test's own on the store of these settings."""

    def __init__(self, settings: Settings) -> None:
        reader = Reader(settings, "creator")
        self.codec, self.log_id = open_codec(settings, reader)
        reader.close()
        self.store: Store = open_store(settings)
        if current_generation(self.store) is None:
            open_generation(self.store, self.codec, UserId("commands"))
        self.processor = CommandProcessor(self.store, self.codec, Aggregates(self.store, self.codec))

    def create(self, count: int, *, key_bytes: int = 0) -> int:
        """That many tenants and a price book each, and a key whose fact is larger than `key_bytes` (at most 4 000); the store's end."""
        futures = []
        for _ in range(count):
            name = f"t{uuid.uuid4().hex[:12]}"
            create = CreateTenant(TenantId(name), TenantTerms(display_name=name))
            grant = KeyGrant(scopes=("invoke",), labels={f"label-{n}": "x" * 200 for n in range(-(-key_bytes // 200))})
            prices = (Price(model="*", meter="calls", amount_micros=1),)
            book = PublishPriceBook(BookId(name), "CNY", None, prices)
            futures.append(self.processor.submit(PendingCommand(CREATE, name, create, _context(), None)))
            if key_bytes:
                issue = IssueApiKey(KeyId(f"k-{name}"), "0" * 64, UserId("u"), grant)
                futures.append(self.processor.submit(PendingCommand(ISSUE_KEY, name, issue, _context(), None)))
            futures.append(self.processor.submit(PendingCommand(PUBLISH, name, book, _context(), None)))
        assert all(isinstance(f.result(60), Done) for f in futures)
        return self.store.last_position()

    def set_quota(self, name: str, quota: ResourceQuota) -> int:
        """A tenant of this name with this quota; the store's end."""
        create = CreateTenant(TenantId(name), TenantTerms(display_name=name))
        made = self.processor.submit(PendingCommand(CREATE, name, create, _context(), None))
        decided = self.processor.submit(PendingCommand(SET_QUOTA, name, SetQuota(quota, "a test"), _context(), None))
        assert all(isinstance(f.result(60), Done) for f in (made, decided))
        return self.store.last_position()

    def close(self) -> None:
        self.processor.close()
        self.store.close()


def _context() -> CommandContext:
    return CommandContext(str(uuid.uuid4()), now_us(), UserId("creator"), "", "")


def wait_relayed(settings: Settings, position: int) -> None:
    """Until the relay says that it has sent everything up to this position of the store."""

    def sent() -> bool:
        relay = health(settings.relay_health_port)
        return relay["status"] == "ready" and relay["position"] >= position and relay["lag"] == 0

    eventually(sent, f"relay at {position}")
