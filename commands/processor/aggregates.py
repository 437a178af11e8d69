"""The states of aggregates, folded from their events, and a bounded memory of the states last seen."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, cast

from commands.processor.aggregate_kind import AggregateKind, AggregateState, S
from commands.store.event_store import Event, Store
from commands.store.stored_record import unpack
from events.facts.topics import FACTS
from events.schema.codec import Codec

STATES_KEPT_MAX = 10_000
"""States remembered: the market's models once over; a forgotten one is folded again from its events."""


class Aggregates:
    """Thread-safe. A remembered state is brought up to the newest event of the store before it is used."""

    def __init__(self, store: Store, codec: Codec) -> None:
        self._store, self._codec = store, codec
        self._lock = threading.Lock()
        self._states: OrderedDict[str, Any] = OrderedDict()

    def load(self, kind: AggregateKind[S], key: str) -> S:
        """The newest state, whichever process wrote it."""
        originator = kind.originator(key)
        with self._lock:
            state = cast(S, self._states.get(originator, kind.initial))
        events = self._store.events(originator, state.version)
        for event in events:
            state = kind.evolve(state, self._fact(event))
        if events:
            self.remember(originator, state)
        return state

    def remember(self, originator: str, state: AggregateState) -> None:
        with self._lock:
            known = self._states.get(originator)
            if known is None or known.version < state.version:
                self._states[originator] = state
            self._states.move_to_end(originator)
            while len(self._states) > STATES_KEPT_MAX:
                self._states.popitem(last=False)

    def _fact(self, event: Event) -> Any:
        name, body = self._codec.decode(unpack(event.state).frame)
        return FACTS[name].cls.model_validate(body)
