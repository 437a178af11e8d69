"""Who writes usage: the life of each producer epoch. Topic `producers`, key = producer.

An epoch's own words are observed; that a dead one is given up is decided, by two people, and counts only in the relay's chain.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from events.facts.fact import DecidedFact, Fact, PublicKey, Signature, UserId


class ProducerOpened(Fact):
    """An epoch may answer calls from now on; its facts are numbered per tenant from 1, and signed with its key (K13).
    `certificate` is what the market's signer says with its key `certified_by`: whose epoch's key `public_key` is."""

    epoch: str
    log_id: str
    host: str
    region: str
    public_key: PublicKey = b""
    certified_by: str = ""
    certificate: Signature = b""


class ProducerClosed(Fact):
    """The epoch is over and these were its last sequences per tenant: what is not in the log does not exist.
    `closed_by` is the producer that said so: itself, or whoever adopted its journal (K14)."""

    epoch: str
    last: dict[str, int]
    closed_by: str


class ProducerWriteOffRequested(DecidedFact):
    """One admin asks that a dead epoch be given up. `producer` is whose epoch it was: the fact lies beside that one's own."""

    epoch: str
    reason: str
    requested_by: UserId


class ProducerWrittenOff(DecidedFact):
    """The epoch died without a word; two people accept that what it had not written is lost. `producer` is whose epoch it was."""

    version: Annotated[int, Field(ge=1)] = 1
    epoch: str
    reason: str
    approver: UserId
    requested_by: UserId = UserId("")
