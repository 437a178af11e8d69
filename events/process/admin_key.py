"""The first admin's key: a setting, else a file in the data folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from events.process.settings import Settings


def admin_key(settings: Settings) -> str:
    """Raises OSError when the key is neither set nor in its file."""
    return settings.admin_key.get_secret_value() or _file(settings).read_text().strip()


def admin_key_or_fresh(settings: Settings, fresh: str) -> str:
    """The key; where there is none yet, the fresh one, which is kept in the file from now on."""
    if not settings.admin_key.get_secret_value() and not _file(settings).exists():
        keep_first(_file(settings), fresh)
    return admin_key(settings)


def _file(settings: Settings) -> Path:
    return settings.folder / "admin.key"


def keep_first(file: Path, text: str, mode: int = 0o600) -> None:
    """A small file that is written once: several processes at once agree on its text. Nothing, where it is there already.
    Written beside and linked into place: no reader sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as f:
            f.write(text + "\n")
            f.flush()
            os.fsync(f.fileno())
        try:
            os.link(part, file)
        except FileExistsError:
            return
    finally:
        part.unlink()
