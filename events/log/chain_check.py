"""Judges a decided record against its chain; an opening of a store that nobody can read opens nothing (K4).

Whoever may write to a decided topic can write headers that claim to open a store. Such bytes must not end a fold: they are set aside,
and if the relay itself had sent them, everything after them waits and alarms, since no store was opened. One place for every fold.
"""

from __future__ import annotations

from collections.abc import Mapping

from events.log.chain import STORE_OPENED, Chain, ChainCheck, ChainPosition
from events.log.headers import CE_TYPE
from events.schema.codec import Codec, Undecodable

_OPENED = STORE_OPENED.encode()
UNREADABLE_OPENING = "unreadable_opening"
"""The code under which such a record is set aside."""


def check_chain(chain: Chain, codec: Codec, chain_position: ChainPosition, headers: Mapping[str, bytes], value: bytes | None) -> ChainCheck:
    """STRAY only for a record whose headers say `StoreOpened` and whose bytes are none; decodes nothing else. An opening under a schema
    that this process does not know WAITS: a newer program may have sent it, and whoever starts anew knows the schema."""
    if headers.get(CE_TYPE) != _OPENED:
        return chain.check(chain_position)
    try:
        name, body = codec.decode(value)
    except Undecodable as e:
        verdict = chain.check(chain_position)
        if verdict is ChainCheck.COPY:
            return verdict
        return ChainCheck.WAIT if e.code == "unknown_schema" else ChainCheck.UNREADABLE
    if name != STORE_OPENED:
        return ChainCheck.COPY if chain.check(chain_position) is ChainCheck.COPY else ChainCheck.UNREADABLE
    return chain.check(chain_position, (str(body["previous_store"]), int(body["previous_position"])))
