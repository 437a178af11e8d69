"""Which producer epochs were opened: those whose key the market's signer certified for this log (K13)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from events.facts.producers import ProducerOpened
from events.log.client import LogMismatch
from events.log.record import Record
from events.process.settings import Settings
from events.process.signing_keys import KeyMissing, PublicKeys, public_keys
from events.producers.batch_proof import EpochVerifier
from events.producers.epoch_key import EpochCertificate, is_certified
from events.schema.codec import Codec, Undecodable

VERIFIERS_MAX = 1_000
"""Verifiers kept; one that is forgotten is made again from its key."""


def market_keys(settings: Settings) -> PublicKeys:
    """Those of the market's signer. Raises LogMismatch when this process knows none."""
    try:
        return public_keys(settings, "market")
    except KeyMissing as e:
        raise LogMismatch(str(e)) from e


class OpenedEpochs:
    """Fed with the records of `producers`. Whatever else somebody writes there opens nothing; the first certified fact of an epoch holds. A
    certificate is checked when its epoch is asked for: of the 10^5 epochs of a year a reader needs those that its records name. Holds some
    500 bytes an epoch, and verifiers of those asked for last."""

    def __init__(self, codec: Codec, log_id: str, market_keys: PublicKeys) -> None:
        self.codec = codec
        self._log_id, self._market_keys = log_id, market_keys
        self._claims: dict[str, tuple[str, EpochCertificate]] = {}
        """Epoch → producer and certificate, not checked yet."""
        self._keys: dict[str, bytes] = {}
        """Epoch → its key, certified."""
        self._verifiers: OrderedDict[str, EpochVerifier] = OrderedDict()

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            try:
                name, body = self.codec.decode(record.value)
            except Undecodable:
                continue
            if name == ProducerOpened.__name__ and not self._is_open(body["epoch"]):
                certificate = EpochCertificate(body["public_key"], body["certified_by"], body["certificate"])
                self._claims[body["epoch"]] = body["producer"], certificate

    def verifier(self, epoch: str) -> EpochVerifier | None:
        """None for an epoch that was not opened. The same one for an epoch that is asked for again and again: it knows what it checked last."""
        if epoch not in self._verifiers:
            if not self._is_open(epoch):
                return None
            self._verifiers[epoch] = EpochVerifier(self._log_id, epoch, self._keys[epoch])
            if len(self._verifiers) > VERIFIERS_MAX:
                self._verifiers.popitem(last=False)
        self._verifiers.move_to_end(epoch)
        return self._verifiers[epoch]

    def _is_open(self, epoch: str) -> bool:
        """Checks the certificate that waits, if one does: so at most one waits for each epoch."""
        producer, certificate = self._claims.pop(epoch, ("", None))
        if certificate is not None and is_certified(certificate, self._log_id, producer, epoch, self._market_keys):
            self._keys[epoch] = certificate.public_key
        return epoch in self._keys
