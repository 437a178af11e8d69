"""Refuses the inserts of an older owner: each key remembers the newest token, and an older one is refused (K8).

A worker that was paused past its session may wake up in the middle of an insert. Its successor came with a newer token, which waited
for the running insert and from then on refuses the old one. Kept in a file, so that a restarted engine remembers.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

KEYS_MAX = 10_000
"""Fences remembered: topics × partitions of every table generation."""


class Fenced(Exception):
    """A newer writer owns this key."""

    code = 10001


class BadFence(Exception):
    """Not key:token,key:token."""


class Fences:
    def __init__(self, path: Path | None = None) -> None:
        self._path, self._locks, self._guard = path, defaultdict[str, threading.Lock](threading.Lock), threading.Lock()
        self._newest: dict[str, int] = {}
        if path is not None and path.exists():
            self._newest = {str(k): int(v) for k, v in json.loads(path.read_text()).items()}

    @contextlib.contextmanager
    def held(self, wanted: str) -> Generator[None]:
        """Runs the body while no other request may use these keys. `wanted`: `key:token,…`. Raises Fenced, BadFence."""
        tokens = _parsed(wanted)
        with contextlib.ExitStack() as stack:
            for key in sorted(tokens):  # the same order for all: no deadlock
                stack.enter_context(self._lock(key))
            for key, token in tokens.items():
                newest = self._newest.get(key, 0)
                if token < newest:
                    raise Fenced(
                        f"Code: {Fenced.code}. DB::Exception: {key} was taken over: token {token} is older than {newest}. (FENCED)"
                    )
            self._remember({k: t for k, t in tokens.items() if t > self._newest.get(k, 0)})
            yield

    def _lock(self, key: str) -> threading.Lock:
        with self._guard:
            if key not in self._locks and len(self._locks) >= KEYS_MAX:
                raise BadFence(f"more than {KEYS_MAX} fences")
            return self._locks[key]

    def _remember(self, tokens: dict[str, int]) -> None:
        if not tokens:
            return
        with self._guard:
            self._newest |= tokens
            if self._path is not None:
                beside = self._path.with_suffix(".new")
                beside.write_text(json.dumps(self._newest))
                os.replace(beside, self._path)


def _parsed(wanted: str) -> dict[str, int]:
    tokens: dict[str, int] = {}
    for part in wanted.split(",") if wanted else ():
        key, _, token = part.rpartition(":")
        if not key or len(key) > 256 or not token.isascii() or not token.isdigit() or len(token) > 18:
            raise BadFence(f"{part[:64]!r} is not key:token")
        tokens[key] = int(token)
    return tokens
