"""The API keys of the market, folded from the store itself before every answer: what was decided a moment ago already counts."""

from __future__ import annotations

import threading

from access.codes import Refusal
from access.keys import Keys
from access.principal import Principal
from commands.store.event_store import Store
from commands.store.followed_events import FollowedEvents
from commands.store.stored_record import unpack
from events.facts.accounts import ApiKeyIssued, ApiKeyRevoked
from events.facts.fact import Timestamp
from events.schema.codec import Codec

NAMES = (ApiKeyIssued.__name__, ApiKeyRevoked.__name__)


class KeysFromStore:
    """Thread-safe. Revocations by other processes are seen at the next call: the store is asked each time."""

    def __init__(self, store: Store, codec: Codec, first_admin: bytes) -> None:
        self._codec = codec
        self._events = FollowedEvents(store, NAMES)
        self._keys = Keys(first_admin)
        self._lock = threading.Lock()

    def authenticate(self, authorization: bytes, now: Timestamp) -> Principal | Refusal:
        """Who sends this Authorization header, or why it opens nothing."""
        self.catch_up()
        return self._keys.authenticate(authorization, now)

    def recognize(self, authorization: bytes, now: Timestamp) -> Principal | Refusal:
        """As `authenticate` of the facts read so far: asks no store, so it may run on an event loop. A key that was revoked a moment ago
        may still be good here, a new one not yet."""
        return self._keys.authenticate(authorization, now)

    def catch_up(self) -> None:
        """Reads what was decided since the last time. Raises StoreUnavailable."""
        with self._lock:
            for event in self._events.new():
                self._keys.apply(*self._codec.decode(unpack(event.state).frame))
