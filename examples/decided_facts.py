"""Writes decided facts on a log as the relay does: chained, with a heartbeat. For tests of what folds them, without a store."""

from __future__ import annotations

import hashlib
import threading
import uuid
from pathlib import Path
from typing import Any

from events.facts import accounts, deployments, models, prices
from events.facts.fact import DecidedFact, TenantId
from events.facts.headers import headers_of
from events.facts.log import StoreOpened
from events.facts.meters import Meter
from events.facts.topics import DECIDED_TOPICS, TOPICS, key_of
from events.log.chain import FIRST, ChainPosition
from events.log.client import Reader, Writer
from events.log.heartbeat import Heartbeat
from events.log.partitioner import partition_of
from events.log.schemas import open_codec
from events.process.artifacts import Artifacts
from events.process.clock import now_us
from events.process.ids import new_id
from events.process.settings import Settings
from events.process.signing_keys import signing_key

HEARTBEAT_S = 0.3


class DecidedFactWriter:
    """A store of one test. `write` writes one decided fact; a thread writes heartbeats until `close`."""

    def __init__(self, settings: Settings) -> None:
        reader = Reader(settings, "decided-facts")
        self.codec, self.log_id = open_codec(settings, reader)
        reader.close()
        self.settings, self.store = settings, f"store-{uuid.uuid4()}"
        self._writer, self._key = Writer(settings, "decided-facts"), signing_key(settings, "relay")
        self.silent = False
        """While true no heartbeat is sent, as when the relay is dead or a fold is cut off."""
        self._position = 0
        self._sent: dict[str, int] = {}
        self._hashes: dict[str, bytes] = {}
        self._versions: dict[str, int] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        for topic in DECIDED_TOPICS:
            for partition in range(TOPICS[topic].partitions):
                fact = StoreOpened(**self._head("store"), store=self.store, previous_store="", previous_position=0, by="prepare")  # type: ignore[arg-type]
                self._append(fact, topic, partition, self.store.encode())
        self._thread = threading.Thread(target=self._write_heartbeats, daemon=True)
        self._thread.start()

    def write(self, cls: type[DecidedFact], **fields: Any) -> int:
        """The position of the fact."""
        subject = str(fields.get("model") or fields.get("tenant") or fields.get("book"))
        fact = cls(**self._head(subject), **fields)
        topic = next(t for t in DECIDED_TOPICS if f"{t}-{cls.__name__}" in self.codec.schemas.current)
        key = key_of(fact)
        self._append(fact, topic, partition_of(key, TOPICS[topic].partitions), key)
        self.write_heartbeat()
        return self._position

    def write_heartbeat(self) -> None:
        if self.silent:
            return
        with self._lock:
            heartbeat = Heartbeat(self.store, self._position, dict(self._sent), now_us())
            self._writer.append("heartbeats", heartbeat.key, heartbeat.to_json(), heartbeat.signed_headers(self._key), partition=0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2)
        self._writer.close()

    def _head(self, subject: str) -> dict[str, Any]:
        self._versions[subject] = self._versions.get(subject, 0) + 1
        return {"event_id": new_id(), "occurred_at": now_us(), "producer": "decided-facts", "version": self._versions[subject]}

    def _append(self, fact: DecidedFact, topic: str, partition: int, key: bytes) -> None:
        with self._lock:
            self._position += 1
            tp = f"{topic}/{partition}"
            frame = self.codec.encode(fact, topic)
            at = ChainPosition(self.store, self._position, self._hashes.get(tp, FIRST))
            self._hashes[tp] = at.sha256(key, frame)
            headers = headers_of(fact) | at.signed_headers(self._key, topic, partition, self._hashes[tp])
            self._writer.append(topic, key, frame, headers, partition)
            self._sent[tp] = self._position

    def _write_heartbeats(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self.write_heartbeat()

    # --- one method per fact

    def tenant(self, tenant: str) -> None:
        self.write(accounts.TenantCreated, tenant=tenant, display_name=tenant, by="admin")

    def key(self, tenant: str, secret: str, *, scopes: tuple[str, ...] = ("invoke",), **more: Any) -> str:
        key_id = f"key-{hashlib.sha256(secret.encode()).hexdigest()[:8]}"
        sha = hashlib.sha256(secret.encode()).hexdigest()
        self.write(accounts.ApiKeyIssued, tenant=tenant, key_id=key_id, key_sha256=sha, user="user-1", scopes=scopes, by="admin", **more)
        return key_id

    def prices(self, book: str, number: int, effective_from: int, *named: tuple[str, Meter, int, int]) -> None:
        """A version of a book; each price is model, meter, amount in micro-units, and per how many."""
        parts = tuple(prices.Price(model=m, meter=meter, amount_micros=amount, per_units=per) for m, meter, amount, per in named)
        self.write(prices.PriceBookPublished, book=book, book_version=number, effective_from=effective_from, prices=parts, by="admin")

    def model(self, model: str, tenant: str) -> None:
        _, domain, team, name = model.split("-", 3)
        compliance = models.Compliance(licence="MIT", data_sources=("public",), data_level="public")
        self.write(
            models.ModelRegistered,
            model=model,
            tenant=tenant,
            domain=domain,
            team=team,
            name=name,
            scenario="test",
            task="classification",
            owner="owner",
            compliance=compliance,
        )

    def version(self, model: str, tenant: str, version: str, file: Path, technical: models.Technical) -> str:
        """Stores the file as the artifact, and returns its digest."""
        digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        Artifacts(self.settings).put(TenantId(tenant), digest, file)
        self.write(
            models.ModelVersionAdded,
            model=model,
            tenant=tenant,
            model_version=version,
            technical=technical,
            artifact=digest,
            artifact_bytes=file.stat().st_size,
            by="owner",
        )
        return digest

    def deploy(self, model: str, tenant: str, version: str, digest: str, **spec: Any) -> int:
        return self.write(
            deployments.VersionDeployed,
            model=model,
            tenant=tenant,
            model_version=version,
            artifact=digest,
            spec=deployments.ServiceSpec(**spec),
            by="owner",
        )

    def rollout(self, model: str, tenant: str, versions: tuple[str, str], digest: str, weight: int) -> int:
        return self.write(
            deployments.RolloutStarted,
            model=model,
            tenant=tenant,
            from_version=versions[0],
            to_version=versions[1],
            artifact=digest,
            weight_percent=weight,
            spec=deployments.ServiceSpec(),
            by="owner",
        )
