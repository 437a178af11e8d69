"""The kinds of aggregate, how each is folded from its events, and a bounded memory of the states last seen."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from commands.bills import decide as bill
from commands.bills.decide import BillState
from commands.prices import decide as price_book
from commands.prices.decide import BookState
from commands.store.event_store import Event, Store
from commands.store.stored_record import unpack
from commands.tenants import decide as tenant
from commands.tenants.decide import TenantState
from commands.write_offs import producers as write_off_producer
from commands.write_offs import records as write_off_record
from commands.write_offs.producers import ProducerState
from commands.write_offs.records import RecordState
from events.facts.topics import FACTS
from events.schema.codec import Codec
from lifecycle import state as lifecycle
from lifecycle.state import Lifecycle

STATES_KEPT = 10_000
"""States remembered: the market's models once over; a forgotten one is folded again from its events."""

AnyState = BillState | Lifecycle | BookState | TenantState | RecordState | ProducerState
S = TypeVar("S", bound=AnyState)


@dataclass(frozen=True, slots=True)
class Kind(Generic[S]):
    """`name` is the first part of the aggregate's id in the store."""

    name: str
    initial: S
    evolve: Callable[[S, Any], S]

    def originator(self, key: str) -> str:
        return f"{self.name}/{key}"


MODEL: Kind[Lifecycle] = Kind("model", Lifecycle(), lifecycle.evolve)
TENANT: Kind[TenantState] = Kind("tenant", tenant.NoTenant(), tenant.evolve)
BOOK: Kind[BookState] = Kind("prices", price_book.NoBook(), price_book.evolve)
BILLS: Kind[BillState] = Kind("bills", bill.NoBills(), bill.evolve)
RECORD: Kind[RecordState] = Kind("record", write_off_record.Untouched(), write_off_record.evolve)
PRODUCER: Kind[ProducerState] = Kind("producer", write_off_producer.ProducerState(), write_off_producer.evolve)


class Aggregates:
    """States by folding; what is remembered is always brought up to the store's newest event before it is used."""

    def __init__(self, store: Store, codec: Codec) -> None:
        self._store, self._codec = store, codec
        self._lock = threading.Lock()
        self._states: OrderedDict[str, Any] = OrderedDict()

    def load(self, kind: Kind[S], key: str) -> S:
        """The newest state, whoever wrote it."""
        originator = kind.originator(key)
        with self._lock:
            state = cast(S, self._states.get(originator, kind.initial))
        events = self._store.events(originator, state.version)
        for event in events:
            state = kind.evolve(state, self._fact(event))
        if events:
            self.remember(originator, state)
        return state

    def remember(self, originator: str, state: AnyState) -> None:
        with self._lock:
            known = self._states.get(originator)
            if known is None or known.version < state.version:
                self._states[originator] = state
            self._states.move_to_end(originator)
            while len(self._states) > STATES_KEPT:
                self._states.popitem(last=False)

    def _fact(self, event: Event) -> Any:
        name, body = self._codec.decode(unpack(event.state).frame)
        return FACTS[name].cls.model_validate(body)
