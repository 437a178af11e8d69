"""The file a fold starts from after a restart: which fold it is of and where it stood, its state, and a sum over all of it.

It is a copy of what the log says, so a file that is torn, changed or of another format is no loss: the log is folded anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

from events.process.file_lock import FileLock

FORMAT = b"modelmarket snapshot 2\n"
"""First line of the file; another number is another format."""
SUM_BYTES = 4


class SnapshotBroken(ValueError):
    """This file is not the snapshot that was written, or not one of ours."""


def write(path: Path, head: dict[str, Any], state: Iterable[bytes], pause_s: float = 0.0) -> None:
    """Replaces the file at once, or leaves it as it was. After each slice of the state others get `pause_s` to work in.

    Several processes of one machine may keep the same file: one that finds another at work leaves it to that one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")) as lock:
        if not lock.acquire():
            return
        part, total = path.with_suffix(".part"), 0
        with part.open("wb") as f:
            for piece in _pieces(head, state):
                f.write(piece)
                total = crc32(piece, total)
                time.sleep(pause_s)
            f.write(total.to_bytes(SUM_BYTES, "big"))
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)


def _pieces(head: dict[str, Any], state: Iterable[bytes]) -> Iterable[bytes]:
    yield FORMAT + json.dumps(head).encode() + b"\n"
    yield from state


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Head and state. Raises SnapshotBroken, OSError."""
    data = path.read_bytes()
    if not data.startswith(FORMAT):
        raise SnapshotBroken("another format")
    end = len(data) - SUM_BYTES
    if crc32(memoryview(data)[:end]) != int.from_bytes(data[end:], "big"):
        raise SnapshotBroken("not as it was written")
    begin = data.index(b"\n", len(FORMAT)) + 1
    return json.loads(data[len(FORMAT) : begin]), data[begin:end]
