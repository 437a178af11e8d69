"""The decided records of a log, read once from its beginning: each of the relay's, in the order of its partition's chain (K4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from events.log.chain import Chain, Claim, claim_of
from events.log.heartbeat import Heartbeat, is_covered
from events.log.record import Record
from events.process.signing_keys import PublicKeys

PROVEN_AT_ONCE = 1_000
"""Records that one signature proves, where there are so many: a signature takes as long as reading fifty records."""
TP = tuple[str, int]


class ChainBroken(Exception):
    """A record that may be the relay's is not proven: one before it is missing, or the signed one behind it has not come yet."""


@dataclass(slots=True)
class DecidedRecords:
    """Of any number of partitions, in whatever order they come."""

    relay_keys: PublicKeys
    chains: dict[TP, Chain[Record]] = field(default_factory=dict[TP, Chain[Record]])
    foreign: list[Record] = field(default_factory=list[Record])
    """What another program wrote."""

    def of(self, records: Iterable[Record]) -> Iterator[Claim[Record]]:
        """Observed facts, copies and what another program wrote are passed over."""
        unproven = 0
        for record in records:
            claim = claim_of(record, record.headers)
            if claim is None:
                continue
            chain = self.chains.setdefault((record.topic, record.partition), Chain[Record](self.relay_keys))
            if chain.add(claim):
                unproven += 1
            if unproven >= PROVEN_AT_ONCE:
                unproven = 0
                yield from self._prove()
        yield from self._prove()

    def _prove(self) -> Iterator[Claim[Record]]:
        for chain in self.chains.values():
            proven = chain.prove()
            self.foreign += [claim.record for claim in proven.foreign]
            yield from proven.records

    def require_whole(self, newest: Heartbeat | None) -> None:
        """Call it at the end. Raises ChainBroken, unless the relay's newest heartbeat says that it sent no more than what is proven: then what
        is left is another program's."""
        for (topic, partition), chain in self.chains.items():
            if chain.waiting and not (newest and is_covered(newest, topic, partition, chain)):
                raise ChainBroken(
                    f"{topic}/{partition}: nothing proves {len(chain.waiting)} records behind position {chain.position}, "
                    f"the first is {chain.waiting[0].record.coordinate}"
                )
            self.foreign += [claim.record for claim in chain.waiting]


def ends(chains: Mapping[TP, Chain[Record]], partitions: Iterable[TP]) -> dict[TP, tuple[str, int]]:
    """The store and the position that each partition ends with; ("", 0) for an empty one."""
    return {tp: (chains[tp].store, chains[tp].position) if tp in chains else ("", 0) for tp in partitions}
