"""What is decided that bills need, folded on from round to round: a round reads what came since the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from events.log.client import Reader
from events.schema.codec import Codec
from projections.bills.decided_for_bills import (
    BillDecisions,
    DecidedRecord,
    KeyTerms,
    LogIncomplete,
    Prices,
    Producers,
    ReadOn,
    producers_of,
)

KEPT_MAX = 400_000
"""Cuts, keys, prices or epochs that one fold holds between rounds, each of a few hundred bytes. One that holds more is read anew in each."""


class Fold(Protocol):
    @property
    def size(self) -> int: ...

    def add(self, fact: DecidedRecord) -> None: ...


F = TypeVar("F", bound=Fold)


class DecidedFolds:
    """Of one process, with one codec: make a new one when a schema has come. Each method reads on to the end that the log has now."""

    def __init__(self, reader: Reader, codec: Codec) -> None:
        self._reader, self._codec = reader, codec
        self._kept: dict[str, tuple[ReadOn, Any]] = {}
        self._producers: Producers | None = None

    def bills(self) -> BillDecisions:
        """Raises LogIncomplete, as the next two."""
        return self._read_on("bills", None, BillDecisions)

    def prices(self) -> Prices:
        return self._read_on("prices", None, Prices)

    def terms(self, partition: int) -> KeyTerms:
        """Of the keys of all tenants in a partition of `accounts`."""
        return self._read_on("accounts", partition, KeyTerms)

    def producers(self) -> Producers:
        kept, self._producers = self._producers or producers_of(self._reader, self._codec), None
        kept.read(self._codec)
        if kept.size <= KEPT_MAX:
            self._producers = kept
        return kept

    def _read_on(self, topic: str, partition: int | None, new: Callable[[], F]) -> F:
        """A fold that is left in the middle of what came is not kept."""
        name = f"{topic}/{partition}"
        at, fold = self._kept.pop(name, None) or (ReadOn(self._reader, topic, partition), new())
        try:
            for fact in at.facts(self._codec):
                fold.add(fact)
        except LogIncomplete:  # all that came is taken, and what proves the rest will come
            self._keep(name, at, fold)
            raise
        self._keep(name, at, fold)
        return fold

    def _keep(self, name: str, at: ReadOn, fold: Fold) -> None:
        if fold.size + at.waiting <= KEPT_MAX:
            self._kept[name] = at, fold
