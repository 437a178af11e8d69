"""A tenant's bills, one after another: the newest one is either fixed by a cut, or issued (K21)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, assert_never

from commands.processor.aggregate_kind import AggregateKind
from events.facts.bills import BillCutFixed, BillIssued, BillLinesListed

BillFact = BillCutFixed | BillLinesListed | BillIssued


@dataclass(frozen=True, slots=True)
class NoBills:
    version: int = 0
    kind: Literal["none"] = "none"


@dataclass(frozen=True, slots=True)
class CutOpen:
    """Bill `cut.number` is fixed and waits for a biller."""

    version: int
    cut: BillCutFixed
    kind: Literal["cut_fixed"] = "cut_fixed"


@dataclass(frozen=True, slots=True)
class Issued:
    """Bill `cut.number` is out, and none is under way."""

    version: int
    cut: BillCutFixed
    digest: bytes
    kind: Literal["issued"] = "issued"


BillState = NoBills | CutOpen | Issued


def evolve(state: BillState, fact: BillFact) -> BillState:
    assert fact.version == state.version + 1, f"fact {fact.version} after state {state.version}"
    match fact:
        case BillCutFixed():
            return CutOpen(fact.version, fact)
        case BillLinesListed():
            assert isinstance(state, CutOpen)
            return replace(state, version=fact.version)
        case BillIssued():
            assert isinstance(state, CutOpen)
            return Issued(fact.version, state.cut, fact.digest)
        case _:
            assert_never(fact)


BILLS: AggregateKind[BillState] = AggregateKind("bills", NoBills(), evolve)
