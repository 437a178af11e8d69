"""A bill: the difference of two statements, as the same bytes for every biller, and their digest (K20, K21)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from rating.statement import Line, Statement, difference


@dataclass(frozen=True, slots=True)
class Bill:
    """Everything a bill says. It depends on no clock and no random number: N billers make the same bytes."""

    cut: Mapping[str, Any]
    """The body of its `BillCutFixed`."""
    lines: tuple[Line, ...]
    total_micros: int
    facts: Mapping[str, int]
    """`claimed` is the difference to the bill before; the others count all records below the cut."""
    producers_open: int
    excluded: tuple[int, ...] = ()
    """Offsets of the tenant's partition below the cut that nobody could read and two people wrote off: they are billed to nobody.
    When one can be read later, this bill stays as it is, and the next one counts it."""

    @property
    def records_written_off(self) -> int:
        return len(self.excluded)

    def line_bodies(self) -> list[dict[str, Any]]:
        """The lines in the words of the fact class `BillLine`."""
        return [{**line.key._asdict(), "quantity": line.quantity, "amount_micros": line.amount_micros} for line in self.lines]

    def content(self) -> dict[str, Any]:
        """What the digest covers: the pins of the cut, the lines, the counts."""
        cut = self.cut
        pins = ("tenant", "period", "number", "log_id", "until", "decided_position", "rating_version", "price_book", "currency")
        return {
            **{name: cut[name] for name in pins},
            "cut_event_id": str(cut["event_id"]),
            "cuts": sorted([c["partition"], c["offset"]] for c in cut["cuts"]),
            "producers_offset": cut.get("producers_offset", 0),
            "previous_bill_sha256": bytes(cut["previous_bill_sha256"]).hex(),
            "lines": self.line_bodies(),
            "total_micros": self.total_micros,
            "facts": dict(self.facts),
            "producers_open": self.producers_open,
            # Left out where there is none: bills issued before records could be written off keep their digests.
            **({"records_written_off": self.records_written_off, "excluded": list(self.excluded)} if self.excluded else {}),
        }

    def canonical(self) -> bytes:
        """UTF-8 JSON, keys sorted, no spaces: hash this to check a bill without this program."""
        return json.dumps(self.content(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def digest(self) -> bytes:
        return hashlib.sha256(self.canonical()).digest()


def make_bill(cut: Mapping[str, Any], now: Statement, before: Statement, epochs_ended: Set[str], excluded: Iterable[int] = ()) -> Bill:
    """Bill `cut["number"]` from its own statement and that of the bill before (an empty one for the first), each without what that
    bill excluded.

    `epochs_ended`: producers closed or written off below `cut["producers_offset"]`. Open are the epochs that wrote a counted
    record of this tenant below the cut and are not among them.
    """
    lines = difference(now, before)
    counts = now.counts
    return Bill(
        cut=cut,
        lines=lines,
        total_micros=sum(line.amount_micros for line in lines),
        facts={**counts.model_dump(), "claimed": counts.claimed - before.counts.claimed},
        producers_open=len(now.epochs - epochs_ended),
        excluded=tuple(sorted(excluded)),
    )
