"""Which producer epochs were opened: those whose key the market's signer certified for this log (K13)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from events.facts.producers import ProducerOpened
from events.log.client import LogMismatch
from events.log.record import Record
from events.process.settings import Settings
from events.process.signing_keys import KeyMissing, PublicKeys, public_keys
from events.producers.batch_proof import EpochVerifier
from events.producers.epoch_key import EpochCertificate, is_certified
from events.schema.codec import Codec, Undecodable


def market_keys(settings: Settings) -> PublicKeys:
    """Those of the market's signer. Raises LogMismatch when this process knows none."""
    try:
        return public_keys(settings, "market")
    except KeyMissing as e:
        raise LogMismatch(str(e)) from e


class OpenedEpochs:
    """Fed with the records of `producers`. Whatever else somebody writes there opens nothing; the first certified fact of an epoch holds."""

    def __init__(self, codec: Codec, log_id: str, market_keys: PublicKeys) -> None:
        self.codec = codec
        self._log_id, self._market_keys = log_id, market_keys
        self._by_epoch: dict[str, EpochVerifier] = {}

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            try:
                name, body = self.codec.decode(record.value)
            except Undecodable:
                continue
            if name == ProducerOpened.__name__ and body["epoch"] not in self._by_epoch and self._is_certified(body):
                self._by_epoch[body["epoch"]] = EpochVerifier(self._log_id, body["epoch"], body["public_key"])

    def verifier(self, epoch: str) -> EpochVerifier | None:
        """None for an epoch that was not opened."""
        return self._by_epoch.get(epoch)

    def _is_certified(self, body: Mapping[str, Any]) -> bool:
        certificate = EpochCertificate(body["public_key"], body["certified_by"], body["certificate"])
        return is_certified(certificate, self._log_id, body["producer"], body["epoch"], self._market_keys)
