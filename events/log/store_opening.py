"""Judges a decided record against its chain; an opening of a store that nobody can read opens nothing (K4).

Whoever may write to a decided topic can write headers that claim to open a store. Such bytes must not end a fold: they are set aside,
and if the relay itself had sent them, everything after them waits and alarms, since no store was opened. One place for every fold.
"""

from __future__ import annotations

from collections.abc import Mapping

from events.log.chain import STORE_OPENED, TYPE, Chain, Place, Verdict
from events.schema.codec import Codec, Undecodable

_OPENED = STORE_OPENED.encode()
UNREADABLE_OPENING = "unreadable_opening"
"""The code under which such a record is set aside."""


def judge(chain: Chain, codec: Codec, place: Place, headers: Mapping[str, bytes], value: bytes | None) -> Verdict:
    """STRAY only for a record whose headers say `StoreOpened` and whose bytes are none; decodes nothing else. An opening under a schema
    that this process does not know WAITS: a newer program may have sent it, and whoever starts anew knows the schema."""
    if headers.get(TYPE) != _OPENED:
        return chain.judge(place)
    try:
        name, body = codec.decode(value)
    except Undecodable as e:
        verdict = chain.judge(place)
        if verdict is Verdict.COPY:
            return verdict
        return Verdict.WAITS if e.code == "unknown_schema" else Verdict.STRAY
    if name != STORE_OPENED:
        return Verdict.COPY if chain.judge(place) is Verdict.COPY else Verdict.STRAY
    return chain.judge(place, (str(body["previous_store"]), int(body["previous_position"])))
