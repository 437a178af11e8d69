"""One local stack: bring its parts up in order, report their state, end every process of it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from access.bearer import ENTROPY_BYTES, api_key
from events.process.file_lock import FileLock
from events.process.settings import PORTS_PER_STACK, Settings
from infra.launcher import processes, raynode
from infra.launcher.failure import LaunchFailed
from infra.launcher.keys import read_or_create_secret, write_secret
from infra.launcher.parts import Part, parts_of
from infra.launcher.paths import paths_of
from infra.launcher.ports import is_free
from infra.launcher.probes import accepting_gateways
from infra.launcher.readiness import POLL_S, tail, wait_until_healthy
from infra.launcher.status import PartStatus, StackStatus, StatusReader
from infra.launcher.supervision import Supervised, Supervisor, fingerprint, stack_environment

LEFT_OVER_S_MAX = 3.0
"""How long what an earlier, killed stack left may take to end by itself."""

Progress = Callable[[str, str], None]
"""Called with (part, what happened), from several threads."""


def silent(part: str, what: str) -> None:
    """Reports nothing."""


class Stack:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.paths = paths_of(settings)
        self.parts = parts_of(settings, self.paths)
        self.supervisor = Supervisor(self.paths)
        self._reader = StatusReader(settings, self.paths, self.parts, self.supervisor)

    # --- up

    def up(self, parts: Iterable[str] | None = None, *, progress: Progress = silent) -> bool:
        """Bring the named parts (or all) up and wait until each is healthy; False when all were already.

        Of a named part's needs only those that are named too are waited for. On failure what has started stays up for a look;
        `down` ends it.
        """
        wanted = self.wanted(parts)
        with self.exclusive(progress):
            if self.supervisor.pid() is None:
                self.launch_supervisor(progress)
            else:
                self.check_same_settings()
                if all(part.healthy for part in self._reader.parts(wanted)):
                    return False
            self.start_in_order(wanted, progress)
        return True

    def wanted(self, parts: Iterable[str] | None) -> dict[str, Part]:
        if parts is None:
            return self.parts
        names = set(parts)
        unknown = names - self.parts.keys()
        if unknown:
            known = ", ".join(self.parts)
            raise LaunchFailed("unknown-part", f"there is no part {', '.join(sorted(unknown))}", remedy=f"the parts are: {known}")
        return {name: part for name, part in self.parts.items() if name in names}

    @contextmanager
    def exclusive(self, progress: Progress) -> Generator[None]:
        """One `up` or `down` of a stack at a time; the lock goes with the process that holds it."""
        with FileLock(self.paths.folder / "launcher.lock") as lock:
            if not lock.acquire():
                progress("launcher", "waiting: another `up` or `down` of this stack is at work")
                lock.acquire(wait=True)
            yield

    def launch_supervisor(self, progress: Progress) -> None:
        """A fresh supervisor, after what a killed one may have left is gone."""
        left = processes.end_all(self.paths.mark, gently_s=LEFT_OVER_S_MAX)
        if left:
            raise LaunchFailed("left-over", f"processes of an earlier start do not end: {sorted(left)}", remedy="end them by their ids")
        for folder in (self.paths.logs, self.paths.run):
            folder.mkdir(parents=True, exist_ok=True)
        self.make_short_folder()
        environment = self.environment()
        # First, so that a supervisor is never there without it, however early this `up` is killed.
        self.fingerprint_file.write_text(fingerprint(self.parts.values(), environment, self.paths))
        self.supervisor.launch(self.parts.values(), environment)
        progress("supervisor", "started")

    def make_short_folder(self) -> None:
        """Sockets are in a folder below /tmp that another user cannot have made."""
        short = self.paths.short
        shutil.rmtree(short, ignore_errors=True)
        try:
            short.mkdir(mode=0o700)
        except FileExistsError:
            raise LaunchFailed(
                "folder-taken",
                f"{short} is there and this user cannot remove it",
                remedy="have its owner remove it, or choose another data folder: MODELMARKET_DATA",
            ) from None

    @property
    def fingerprint_file(self) -> Path:
        return self.paths.run / "fingerprint"

    def check_same_settings(self) -> None:
        now = fingerprint(self.parts.values(), self.environment(), self.paths)
        if not self.fingerprint_file.exists() or self.fingerprint_file.read_text() != now:
            raise LaunchFailed("settings-changed", "the stack runs with other settings than these", remedy="run `modelmarket down` first")

    def environment(self) -> dict[str, str]:
        given_token = self.settings.ray_auth_token.get_secret_value()
        given_key = self.settings.admin_key.get_secret_value()
        if given_token:
            write_secret(self.paths.ray_token, given_token)
        minted = {
            "MODELMARKET_RAY_AUTH_TOKEN": given_token or read_or_create_secret(self.paths.ray_token, secrets.token_hex(32)),
            "MODELMARKET_ADMIN_KEY": given_key or read_or_create_secret(self.paths.admin_key, api_key(secrets.token_bytes(ENTROPY_BYTES))),
        }
        return stack_environment(self.settings, self.paths, minted)

    def start_in_order(self, wanted: dict[str, Part], progress: Progress) -> None:
        """Each part starts when what it comes after is healthy; those that need nothing of each other start together."""
        cancelled = threading.Event()
        waiting, running, healthy = dict(wanted), dict[Future[None], str](), set[str]()
        with ExitStack() as asked, ThreadPoolExecutor(max_workers=len(wanted) or 1, thread_name_prefix="start") as pool:
            try:
                while waiting or running:
                    for part in [part for part in waiting.values() if all(need in healthy or need not in wanted for need in part.after)]:
                        del waiting[part.name]
                        running[pool.submit(self.start_part, part, progress, cancelled, asked)] = part.name
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        healthy.add(running.pop(future))
                        future.result()
            finally:
                cancelled.set()

    def start_part(self, part: Part, progress: Progress, cancelled: threading.Event, asked: ExitStack) -> None:
        """`asked` keeps open what nobody waits for here."""
        began = time.monotonic()
        if self.part_status(part.name).healthy:
            progress(part.name, "already healthy")
            return
        fresh = not self.supervised(part.name).pid
        if fresh:
            self.check_ports(part)
            if part.before:
                part.before()
        self.supervisor.start(part.name)
        progress(part.name, "starting")
        wait_until_healthy(self.supervisor, self.paths, part, part.healthy_s_max, cancelled)
        if part.name == "ray" and fresh and not self.supervised("controller").pid:
            asked.enter_context(closing(raynode.begin_serve(self.settings, self.paths)))
        progress(part.name, f"{'done' if part.runs_once else 'healthy'} after {time.monotonic() - began:.1f} s")

    def check_ports(self, part: Part) -> None:
        for port in part.ports:
            if not is_free(self.settings.host, port):
                raise LaunchFailed(
                    "port-taken",
                    f"port {port}, which {part.name} needs, is taken by {processes.holder_of(port)}",
                    part=part.name,
                    remedy=f"end it, or choose another block of {PORTS_PER_STACK} ports: MODELMARKET_BASE_PORT (now {self.settings.base_port})",
                )

    # --- health

    def wait_healthy(self, part: str, timeout_s: float | None = None) -> None:
        """Return when the part is healthy; LaunchFailed after `timeout_s` (default: what a start of it may take)."""
        wanted = self.parts[part]
        wait_until_healthy(self.supervisor, self.paths, wanted, wanted.healthy_s_max if timeout_s is None else timeout_s, threading.Event())

    def tail(self, part: str, lines: int) -> list[str]:
        """The newest lines of a part's log; none when it has no log yet."""
        return tail(self.paths.log(part), lines)

    def supervised(self, part: str) -> Supervised:
        return self.supervisor.one(part)

    # --- what is there

    def pid(self, part: str) -> int | None:
        """The main process of a part; None while it has none."""
        return None if self.supervisor.pid() is None else self.supervised(part).pid or None

    def kill9(self, part: str) -> int:
        """Kill the main process of a part as a crash would, and say which it was. Of the gateway: a process that accepts calls."""
        pid = min(accepting_gateways(self.settings), default=None) if part == "gateway" else self.pid(part)
        if pid is None:
            raise LaunchFailed("not-running", f"{part} has no process to kill", part=part, remedy="start it with `modelmarket up`")
        os.kill(pid, signal.SIGKILL)
        return pid

    def status(self) -> StackStatus:
        return self._reader.stack()

    def part_status(self, name: str) -> PartStatus:
        (status,) = self._reader.parts([name])
        return status

    # --- down

    def down(self, *, progress: Progress = silent) -> bool:
        """End every process of this stack; False when there was none. The data stays."""
        with self.exclusive(progress):
            found = processes.marked(self.paths.mark)
            if self.supervisor.pid() is not None:
                self.stop_in_order(progress)
            left = processes.end_all(self.paths.mark, gently_s=LEFT_OVER_S_MAX)
            if left:
                raise LaunchFailed(
                    "will-not-end", f"these processes of the stack do not end: {sorted(left)}", remedy="end them by their ids"
                )
            shutil.rmtree(self.paths.short, ignore_errors=True)
        return bool(found)

    def restart(self, name: str, *, progress: Progress = silent) -> None:
        """End one part and start it again; return when it is healthy. Its data stays, and the others go on."""
        (part,) = self.wanted([name]).values()
        with self.exclusive(progress):
            if self.supervisor.pid() is None:
                raise LaunchFailed("not-running", "the stack does not run", remedy="start it with `modelmarket up`")
            self.check_same_settings()
            if name == "gateway" and accepting_gateways(self.settings) and self.supervised(name).pid:
                self.replace_gateways(part, progress)
                return
            again = {name: part}
            if name == "ray" and self.supervised("gateway").pid:  # its processes leave with Ray's node, and others come when it is back
                again |= {"gateway": self.parts["gateway"]}
            self.stop_parts([part], progress)
            self.start_in_order(again, progress)

    def replace_gateways(self, part: Part, progress: Progress) -> None:
        """A successor starts beside each gateway, which leaves when that accepts calls: none is refused."""
        before, began = accepting_gateways(self.settings), time.monotonic()
        self.supervisor.signal(part.name, "HUP")
        progress(part.name, f"replacing {len(before)} process{'' if len(before) == 1 else 'es'}")
        deadline = began + part.healthy_s_max
        while before & (now := accepting_gateways(self.settings)) or not now:
            if time.monotonic() > deadline:
                why = f"not all processes of {part.name} were replaced within {part.healthy_s_max:.0f} s"
                raise LaunchFailed(
                    "part-not-healthy", why, part=part.name, remedy=f"`modelmarket status`, and `modelmarket logs {part.name}`"
                )
            time.sleep(POLL_S)
        progress(part.name, f"healthy after {time.monotonic() - began:.1f} s")

    def stop_in_order(self, progress: Progress) -> None:
        """What is needed by others stops after them; those that need nothing of each other stop together."""
        remaining = dict(self.parts)
        while remaining:
            needed = {need for part in remaining.values() for need in part.after}
            last = [part for part in remaining.values() if part.name not in needed]
            self.stop_parts(last, progress)
            remaining = {name: part for name, part in remaining.items() if part not in last}
        self.supervisor.shutdown()

    def stop_parts(self, parts: list[Part], progress: Progress) -> None:
        """Together, and waits until they are gone."""
        for part in parts:
            self.supervisor.stop(part.name)
        deadline = time.monotonic() + max(part.stop_s_max for part in parts) + 5
        while (known := self.supervisor.known()) and any(known[part.name].pid for part in parts) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for part in parts:
            progress(part.name, "stopped")
