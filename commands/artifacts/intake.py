"""Takes in uploaded model files: a file is inspected in a process of its own, and only then stored; what is known of a digest is kept."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands.artifacts.inspection import Signature, contradictions, inspect, load_once
from commands.processor.rejection import Rejected, invalid
from events.facts.fact import TenantId
from events.facts.models import Technical
from events.process.artifacts import Artifacts

INSPECTIONS_MAX = 2
"""Files inspected at once: each may take gigabytes for a moment."""
UPLOADED_S_MAX = 300.0
"""Longest an uploaded file waits for its inspection."""
CHECKS_WAITING_MAX, CHECK_S_MAX = 4, 5.0
"""Commands that may wait for the inspection of a file, and how long: each of them holds a thread that others need."""
SIGNATURES_KEPT_MAX = 10_000


class InspectionBusy(Exception):
    """Too many files are being inspected. Transient: try again later."""


class ArtifactIntake:
    """Thread-safe. The inputs and outputs of a digest's file are remembered: they can never change."""

    def __init__(self, artifacts: Artifacts, folder: Path) -> None:
        self._artifacts, self.folder = artifacts, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._slots = threading.Semaphore(INSPECTIONS_MAX)
        self._checks = threading.Semaphore(CHECKS_WAITING_MAX + INSPECTIONS_MAX)
        self._signatures: OrderedDict[str, Signature] = OrderedDict()
        self._loadable: OrderedDict[str, None] = OrderedDict()

    def take(self, tenant: TenantId, digest: str, file: Path) -> Signature | Rejected:
        """Stores a file whose hash the caller has compared, if it is a model we allow. Raises InspectionBusy."""
        with _slot(self._slots, UPLOADED_S_MAX):
            found = inspect(file)
        if isinstance(found, Rejected):
            return found
        self._artifacts.put(tenant, digest, file)
        self._remember(digest, found)
        return found

    def check(self, tenant: TenantId, digest: str, technical: Technical) -> tuple[int, Rejected | None]:
        """(size, a rejection when the description is not the file's). Raises ArtifactMissing, InspectionBusy."""
        size = self._artifacts.size(tenant, digest)
        signature = self._signatures.get(digest) or self._read(tenant, digest)
        if isinstance(signature, Rejected):
            return size, signature
        differences = contradictions(signature, technical)
        if not differences:
            return size, None
        return size, invalid(
            "description_differs", "; ".join(differences), "technical", "describe the file as it is, or upload the right one"
        )

    def load(self, tenant: TenantId, digest: str) -> Rejected | None:
        """A rejection when the runtime cannot load the file, so that nobody reviews it. Raises ArtifactMissing, InspectionBusy."""
        if digest in self._loadable:
            return None
        with self._fetched(tenant, digest) as file:
            failed = load_once(file)
        if failed is None:
            self._loadable[digest] = None
            _forget_oldest(self._loadable)
        return failed

    def _read(self, tenant: TenantId, digest: str) -> Signature | Rejected:
        with self._fetched(tenant, digest) as file:
            if known := self._signatures.get(digest):  # another request asked for the same file
                return known
            found = inspect(file)
        if isinstance(found, Signature):
            self._remember(digest, found)
        return found

    @contextmanager
    def _fetched(self, tenant: TenantId, digest: str) -> Generator[Path]:
        """A stored file on this disk, and a slot for its inspection."""
        with (
            _slot(self._checks, 0),
            _slot(self._slots, CHECK_S_MAX),
            tempfile.NamedTemporaryFile(dir=self.folder, suffix=".onnx") as file,
        ):
            file.write(self._artifacts.read(tenant, digest))
            file.flush()
            yield Path(file.name)

    def _remember(self, digest: str, signature: Signature) -> None:
        self._signatures[digest] = signature
        _forget_oldest(self._signatures)


def _forget_oldest(known: OrderedDict[str, Any]) -> None:
    while len(known) > SIGNATURES_KEPT_MAX:
        known.popitem(last=False)


@contextmanager
def _slot(slots: threading.Semaphore, wait_s: float) -> Generator[None]:
    if not slots.acquire(blocking=wait_s > 0, timeout=wait_s or None):
        raise InspectionBusy("too many files are being inspected")
    try:
        yield
    finally:
        slots.release()
