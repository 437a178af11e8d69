"""Secrets of a stack that its settings do not contain: made at its first start, kept in its data folder, readable by its owner only."""

from __future__ import annotations

import os
from pathlib import Path


def read_or_create_secret(path: Path, fresh: str) -> str:
    """The secret in the file; at the first start the fresh one, which only the owner may read."""
    if not path.exists():
        write_secret(path, fresh)
    return path.read_text().strip()


def write_secret(path: Path, secret: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secret)
    partial.rename(path)
