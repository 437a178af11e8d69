"""Checks a decided record against the chain of its partition. Every fold of decided facts calls this one function (K4).

Any program with write access to a decided topic can write headers that claim to open a store. Such a record must not end a fold: when
its bytes cannot be read it is set aside. If the relay itself had sent it, all records after it wait and alarm, since no store was opened.
"""

from __future__ import annotations

from collections.abc import Mapping

from events.log.chain import STORE_OPENED, Chain, ChainCheck, ChainPosition
from events.log.headers import CE_TYPE
from events.schema.codec import Codec, Undecodable

_OPENED = STORE_OPENED.encode()
UNREADABLE_OPENING = "unreadable_opening"
"""The code under which such a record is set aside."""
NOT_SENT = "not_sent"
"""The code of a record with a chain position that no heartbeat ever named."""


def check_chain(chain: Chain, codec: Codec, chain_position: ChainPosition, headers: Mapping[str, bytes], value: bytes | None) -> ChainCheck:
    """Decodes only records whose headers say `StoreOpened`; UNREADABLE is only for those. One with a schema that this process does not
    know has to WAIT: a newer program may have sent it, and a process that starts later knows the schema."""
    if headers.get(CE_TYPE) != _OPENED:
        return chain.check(chain_position)
    try:
        name, body = codec.decode(value)
    except Undecodable as e:
        if chain.check(chain_position) is ChainCheck.COPY:
            return ChainCheck.COPY
        return ChainCheck.WAIT if e.code == "unknown_schema" else ChainCheck.UNREADABLE
    if name != STORE_OPENED:
        return ChainCheck.COPY if chain.check(chain_position) is ChainCheck.COPY else ChainCheck.UNREADABLE
    return chain.check(chain_position, (str(body["previous_store"]), int(body["previous_position"])))
