"""Who writes usage: the life of each producer epoch. Topic `producers`, key = producer."""

from __future__ import annotations

from events.fact import Fact, UserId


class ProducerOpened(Fact):
    """An epoch may answer calls from now on; its facts are numbered per tenant from 1 (K13)."""

    epoch: str
    log_id: str
    host: str
    region: str


class ProducerClosed(Fact):
    """The epoch is over and these were its last sequences per tenant: what is not in the log does not exist.
    `closed_by` is the producer that said so: itself, or whoever adopted its journal (K14)."""

    epoch: str
    last: dict[str, int]
    closed_by: str


class ProducerWrittenOff(Fact):
    """The epoch died without a word; a person accepts that what it had not written is lost."""

    epoch: str
    reason: str
    approver: UserId
