"""Events of some names, each read once, in the order in which they were decided: for what a process folds from the store itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from commands.store.event_store import EVENTS_READ_MAX, Event, Store


class FollowedEvents:
    """Not thread-safe: its owner has a lock around it and what it folds."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self._store, self._names = store, names
        self._seen = 0

    def new(self) -> Iterator[Event]:
        """All that was stored before this call and not read yet. An event counts as read when the next one is asked for. Raises
        StoreUnavailable; the next call goes on there."""
        newest = self._store.last_position()
        while self._seen < newest:
            page = self._store.notifications(self._seen, names=self._names, until=newest)
            for event in page:
                yield event
                self._seen = event.position
            if len(page) < EVENTS_READ_MAX:
                self._seen = newest
