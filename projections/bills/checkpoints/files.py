"""Keeps checkpoints in files: each whole or not there, with the SHA-256 of what it holds; a lost one costs time and nothing else."""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from events.process.ids import new_id
from projections.bills.checkpoints.checkpoint import Checkpoint, UnreadBelow, decoded, encoded

logger = logging.getLogger(__name__)
FORMAT = b"modelmarket bills 1\n"
"""The first line of a file; its length is no matter, what follows the digest begins at a multiple of eight."""
_BEGIN = 64
SHARE_FREE_MIN = 0.05
"""Of the disk: below it nothing more is kept, and what is there stays."""
PART_S_MAX = 3600.0
"""A file that is not written to its end within it is left over by a process that was killed."""
UNREAD_MAX = 100_000
"""Records of a partition that nobody can read, and that are remembered, about 10 MB."""


class CheckpointFiles:
    """A folder. Any number of processes may share it: files are replaced, never changed. What cannot be written or read is logged and not kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for part in folder.glob("*/*.part"):
            if part.stat().st_mtime < time.time() - PART_S_MAX:
                part.unlink(missing_ok=True)

    def checkpoint(self, partition: int, tenant: str) -> Checkpoint | None:
        data = self._read(self._of_tenant(partition, tenant))
        found = decoded(data) if data is not None else None
        return found if found is not None and found.pins.tenant == tenant else None

    def keep(self, partition: int, checkpoint: Checkpoint) -> None:
        self._write(self._of_tenant(partition, checkpoint.pins.tenant), encoded(checkpoint))

    def discard(self, partition: int, tenant: str) -> None:
        self._of_tenant(partition, tenant).unlink(missing_ok=True)

    def unread(self, partition: int) -> UnreadBelow | None:
        data = self._read(self._of_partition(partition))
        return UnreadBelow.decoded(data) if data is not None else None

    def keep_unread(self, partition: int, unread: UnreadBelow) -> None:
        if len(unread.unread) <= UNREAD_MAX:
            self._write(self._of_partition(partition), unread.encoded())

    def discard_all(self) -> None:
        for path in self._folder.glob("*/*"):
            path.unlink(missing_ok=True)

    def _of_partition(self, partition: int) -> Path:
        return self._folder / str(partition) / "unread"

    def _of_tenant(self, partition: int, tenant: str) -> Path:
        return self._folder / str(partition) / sha256(tenant.encode()).hexdigest()

    def _read(self, path: Path) -> memoryview | None:
        """What was written; the pages of a large file are read when they are looked at."""
        try:
            with path.open("rb") as f:
                data = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:  # ValueError: an empty file
            logger.warning("%s cannot be read and is not used: %s", path.name, e)
            return None
        head = FORMAT + sha256(data[_BEGIN:]).digest()
        if bytes(data[: len(head)]) != head:
            logger.warning("%s is not as it was written and is not used", path.name)
            return None
        return data[_BEGIN:]

    def _write(self, path: Path, pieces: Sequence[bytes | memoryview]) -> None:
        digest, part = sha256(), path.with_name(f"{path.name}.{new_id()}.part")
        for piece in pieces:
            digest.update(piece)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            space = os.statvfs(path.parent)
            if space.f_bavail < SHARE_FREE_MIN * space.f_blocks:
                logger.warning("%s is not kept: the disk is almost full", path.name)
                return
            with part.open("wb") as f:
                f.write((FORMAT + digest.digest()).ljust(_BEGIN, b"\0"))
                f.writelines(pieces)
            part.replace(path)
        except OSError as e:
            logger.warning("%s is not kept: %s", path.name, e)
            with suppress(OSError):
                part.unlink()
