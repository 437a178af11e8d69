"""What the gateway needs of the loaded versions, wherever they run."""

from __future__ import annotations

from typing import Protocol


class ReplicaLost(Exception):
    """The replica that had these calls is gone or cannot be reached; whether it ran them is not known."""


class NoReplica(Exception):
    """No replica of the version runs now; nothing was executed."""


class ModelReplicas(Protocol):
    async def call(self, address: str, blob: bytes) -> bytes:
        """Carries a packed batch to one replica of the version at `…-v{semver}`, and its reply back. Raises ReplicaLost, NoReplica."""
        ...
