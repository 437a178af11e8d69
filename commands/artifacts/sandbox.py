"""Reads uploaded files in a process with nothing in its environment, bounded memory and time, and no network where the kernel
lets it be taken away.

The parent calls `run_confined`; the process calls `confine` before it imports anything that parses. Sources: unshare(2), seccomp(2), and
the system call numbers of Linux.
"""

from __future__ import annotations

import ctypes
import json
import logging
import platform
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

WALL_S_MAX = 60
MEMORY_BYTES_MAX = 8 << 30
"""Address space: a model is read whole, twice at worst."""
FILES_MAX = 64
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF
_ALLOW, _ERROR_EPERM = 0x7FFF_0000, 0x0005_0001
_ARCHITECTURES = {"x86_64": (0xC000_003E, 41), "aarch64": (0xC000_00B7, 198)}
"""Machine → the kernel's number of it, and of its system call socket()."""
NETWORK_OPEN = "open"


def run_confined(module: str, *arguments: str) -> dict[str, Any] | None:
    """What the module printed as JSON; None when it crashed. Raises TimeoutError."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            timeout=WALL_S_MAX,
            check=False,
            cwd=Path(__file__).resolve().parents[2],
            env={},  # no key, no password, no address of ours
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"not within {WALL_S_MAX} s") from None
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        logger.warning("%s ended with %d: %s", module, done.returncode, done.stderr[-300:].decode(errors="replace"))
        return None
    if str(report.get("network", "")).startswith(NETWORK_OPEN):
        logger.warning("uploads are read with the network at hand: %s", report["network"])
    return report


def confine() -> str:
    """Takes from this process what reading a file does not need; how it has no network, or why it has one ("open: …"). Call it while there
    is one thread."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (WALL_S_MAX, WALL_S_MAX))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MAX, FILES_MAX))
    for nothing in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(nothing, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        return "none: a network namespace of its own"
    refused = ctypes.get_errno()
    if _deny_sockets(libc):
        return "none: socket() is denied"
    return f"{NETWORK_OPEN}: unshare failed with {refused}, seccomp with {ctypes.get_errno()}"


def _deny_sockets(libc: Any) -> bool:
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    architecture, socket = known
    steps = (
        (_LOAD, 0, 0, 4),  # the architecture of the call
        (_JUMP_IF_EQUAL, 0, 3, architecture),  # another one: refused
        (_LOAD, 0, 0, 0),  # its number
        (_JUMP_IF_EQUAL, 1, 0, socket),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR_EPERM),
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    filtered = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filtered), 0, 0) == 0)
