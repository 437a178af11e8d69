"""The processes of a stack as the kernel sees them: found by their mark, their memory measured, ended by id and never by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.launcher.paths import MARK_VARIABLE

KILL_S_MAX = 10.0
"""A killed process is gone at once unless the kernel holds it; past this it is reported instead of waited for."""


@dataclass(frozen=True)
class ProcessTable:
    """All processes of the machine, read once: for who asks about several parts."""

    children: Mapping[int, Sequence[int]]
    environments: Mapping[int, frozenset[bytes]]

    @staticmethod
    def read() -> ProcessTable:
        children: dict[int, list[int]] = {}
        environments: dict[int, frozenset[bytes]] = {}
        for pid in pids():
            parent = parent_of(pid)
            if parent is not None:
                children.setdefault(parent, []).append(pid)
            environments[pid] = frozenset(environment_of(pid).split(b"\0"))
        return ProcessTable(children, environments)

    def tree(self, *roots: int) -> set[int]:
        """Processes and all their descendants."""
        found, unseen = set(roots), list(roots)
        while unseen:
            for child in self.children.get(unseen.pop(), ()):
                if child not in found:
                    found.add(child)
                    unseen.append(child)
        return found

    def carriers(self, *pairs: str) -> set[int]:
        """As the function of this name."""
        wanted = {pair.encode() for pair in pairs}
        return self.tree(*(pid for pid, environment in self.environments.items() if wanted <= environment)) - ancestry(os.getpid())

    def marked(self, mark: str, *also: str) -> set[int]:
        """As the function of this name."""
        return self.carriers(f"{MARK_VARIABLE}={mark}", *also)


def marked(mark: str, *also: str) -> set[int]:
    """Ids of all processes that carry this stack's mark, and of all that descend from one; never this process or its ancestors.

    `also` narrows it to those with further `NAME=value` pairs in their environment."""
    return carriers(f"{MARK_VARIABLE}={mark}", *also)


def carriers(*pairs: str) -> set[int]:
    """Ids of all processes that were started with these `NAME=value` pairs in their environment, and of all that descend from one; never
    this process or its ancestors."""
    return ProcessTable.read().carriers(*pairs)


def pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it ended, or belongs to another user
        return b""


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def parent_of(pid: int) -> int | None:
    """None for a process that is gone or already dead and only waits to be collected."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] == "Z" else int(after_name[1])


def ancestry(pid: int) -> set[int]:
    line: set[int] = set()
    current: int | None = pid
    while current and current not in line:
        line.add(current)
        current = parent_of(current)
    return line


def alive(pid: int) -> bool:
    return parent_of(pid) is not None


def pss_bytes(processes: Iterable[int]) -> int:
    """Memory of several processes, shared pages counted once: the kernel splits them among their users."""
    return sum(pss_of(pid) for pid in processes)


def pss_of(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def uptime_s(pid: int) -> int:
    try:
        return int(time.time() - psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0


def end_all(mark: str, *also: str, gently_s: float) -> set[int]:
    """End all marked processes, as `end_carriers` does. Returns survivors."""
    return end_carriers(f"{MARK_VARIABLE}={mark}", *also, gently_s=gently_s)


def end_carriers(*pairs: str, gently_s: float) -> set[int]:
    """End all `carriers`: SIGTERM, after `gently_s` SIGKILL. Repeats, since a dying parent may still start a child. Returns survivors."""
    signalled: dict[int, psutil.Process] = {}
    gently_until = time.monotonic() + gently_s
    give_up = gently_until + KILL_S_MAX
    # A child that has no mark of its own is found through its parent, and may outlive that. By then its number may be another process's.
    while (left := {pid for pid in carriers(*pairs) | _running(signalled) if alive(pid)}) and time.monotonic() < give_up:
        if time.monotonic() < gently_until:
            for pid in left - signalled.keys():
                with suppress(psutil.NoSuchProcess):
                    signalled[pid] = psutil.Process(pid)
                    send({pid}, signal.SIGTERM)
        else:
            send(left, signal.SIGKILL)
        time.sleep(0.05)
    return left


def _running(known: Mapping[int, psutil.Process]) -> set[int]:
    """Those that are still the process that they were."""
    return {pid for pid, process in known.items() if process.is_running()}


def send(processes: Iterable[int], what: signal.Signals) -> None:
    for pid in processes:
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            continue


def holder_of(port: int) -> str:
    """Who listens on a TCP port, in words for a person."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return f"process {connection.pid} ({command_of(connection.pid)[:80]})" if connection.pid else "a process of another user"
    return "a process that does not listen"
