"""The files and folders of a stack, and the mark in the environment of its processes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from events.process.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout: what the processes import."""

MARK_VARIABLE = "MODELMARKET_STACK_MARK"
"""In the environment of every process of a stack, and of all their children: what `down` sweeps by."""
PART_VARIABLE = "MODELMARKET_PART"
"""In the environment of every process of a part: its name."""

SHORT = Path("/tmp")
"""Unix socket paths end at 107 bytes, so sockets cannot live below an arbitrary data folder."""


@dataclass(frozen=True)
class StackPaths:
    folder: Path
    """Everything this stack writes and keeps."""
    mark: str
    """Which stack a process belongs to: a data folder has one stack."""
    short: Path
    """Sockets and Ray's session: gone after `down`."""

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def supervisor_config(self) -> Path:
        return self.run / "supervisord.conf"

    @property
    def supervisor_socket(self) -> Path:
        return self.short / "supervisor.sock"

    @property
    def ray(self) -> Path:
        return self.short / "ray"

    @property
    def ray_token(self) -> Path:
        return self.folder / "ray.token"

    @property
    def admin_key(self) -> Path:
        return self.folder / "admin.key"

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"


def paths_of(settings: Settings) -> StackPaths:
    mark = hashlib.sha256(str(settings.folder).encode()).hexdigest()[:16]
    return StackPaths(folder=settings.folder, mark=mark, short=short_folder(mark))


def short_folder(mark: str) -> Path:
    return SHORT / f"mm-{os.getuid()}-{mark[:8]}"
