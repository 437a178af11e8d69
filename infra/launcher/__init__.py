"""The launcher: every part of a stack on one machine, started in order, kept alive, ended with every process."""

from __future__ import annotations

from infra.launcher.failure import LaunchFailed
from infra.launcher.stack import Stack
from infra.launcher.status import PartStatus, StackStatus

__all__ = ["LaunchFailed", "PartStatus", "Stack", "StackStatus"]
