"""Gateway processes as their listener sees them: started, heard, replaced by a successor beside them, ended when they are silent.

A gateway process writes one line of JSON about itself to its channel, a socket, at least every second: `state` (starting, accepting,
leaving) and `detail`. The channel's end tells each side that the other is dead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import orjson

logger = logging.getLogger(__name__)

STARTING, ACCEPTING, LEAVING = "starting", "accepting", "leaving"
SILENT_S_MAX = 10.0
"""A process that was heard before and is silent for longer has an event loop that does not go on."""
FIRST_HEARD_S_MAX = 120.0
"""Until its first line it imports Ray."""
STEADY_S = 5.0
"""A process that accepted for longer is replaced at once, however it ended."""
PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Before the next start, by how many starts failed in a row."""
LINE_BYTES_MAX = 64 << 10


class Child:
    """One gateway process. `changed` is called whenever its state is another."""

    def __init__(self, command: Sequence[str], listening: socket.socket, changed: Callable[[], None]) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            fds = (listening.fileno(), theirs.fileno())
            self._process = subprocess.Popen([*command, *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL)
        self.pid = self._process.pid
        self.state, self.detail = STARTING, "starting"
        self.ended = asyncio.Event()
        self.left_starting, self.left_accepting = asyncio.Event(), asyncio.Event()
        self.began = self._heard_at = time.monotonic()
        self._heard = False
        self._changed = changed
        loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._end)
        self._listening = loop.create_task(self._listen(ours))

    def leave(self) -> None:
        """It stops accepting, answers what it has, and ends."""
        self._signal(signal.SIGTERM)

    def end_if_silent(self) -> None:
        if time.monotonic() - self._heard_at > (SILENT_S_MAX if self._heard else FIRST_HEARD_S_MAX):
            logger.error("gateway %d is silent: it is ended", self.pid)
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self.ended.is_set():
            self._process.send_signal(number)

    async def _listen(self, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
        try:
            while line := await reader.readline():
                self._heard, self._heard_at = True, time.monotonic()
                message = orjson.loads(line)
                self._become(str(message["state"]), str(message.get("detail") or ""))
            self._become(LEAVING, "it hung up")
        finally:
            writer.close()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()
        logger.log(logging.INFO if status == 0 else logging.WARNING, "gateway %d ended with %d", self.pid, status)
        self.ended.set()
        self._become(LEAVING, f"ended with {status}")

    def _become(self, state: str, detail: str) -> None:
        if self.state == LEAVING:
            return
        was, self.state, self.detail = self.state, state, detail
        if state != STARTING:
            self.left_starting.set()
        if state == LEAVING:
            self.left_accepting.set()
        if state != was:
            logger.info("gateway %d is %s%s", self.pid, state, f": {detail}" if detail else "")
            self._changed()


class Children:
    """Keeps `count` processes accepting."""

    def __init__(self, command: Sequence[str], count: int, listening: socket.socket) -> None:
        self.changed = asyncio.Event()
        self._command, self._listening = tuple(command), listening
        self._all: set[Child] = set()
        self._restarts = [asyncio.Event() for _ in range(count)]
        self._tasks = [_started(self._keep(restart)) for restart in self._restarts]
        self._tasks.append(_started(self._watch()))
        for task in self._tasks:
            task.add_done_callback(lambda _: self.changed.set())

    def pids(self, state: str) -> list[int]:
        return sorted(child.pid for child in self._all if child.state == state)

    @property
    def detail(self) -> str:
        """Of the youngest, what it reported last."""
        return max(self._all, key=lambda child: child.began).detail if self._all else "no process"

    @property
    def failure(self) -> BaseException | None:
        return next((e for task in self._tasks if task.done() and not task.cancelled() and (e := task.exception())), None)

    def replace(self) -> None:
        """Starts a successor beside each process, which leaves when that accepts."""
        for restart in self._restarts:
            restart.set()

    async def stop(self) -> None:
        """Returns when all have answered what they had."""
        for task in self._tasks[:-1]:
            task.cancel()
        for child in self._all:
            child.leave()
        while self._all:
            await asyncio.gather(*(child.ended.wait() for child in self._all))
            self._forget_ended()

    async def _keep(self, restart: asyncio.Event) -> None:
        """One of them, and its successors. A successor that fails leaves its predecessor as it is."""
        failures = 0
        predecessor: Child | None = None
        while True:
            await asyncio.sleep(PAUSES_S[min(failures, len(PAUSES_S) - 1)])
            restart.clear()  # one that is asked for from now on is for this process, too
            child = self._start()
            await child.left_starting.wait()
            if child.state != ACCEPTING:
                failures += 1
                continue
            accepted_at = time.monotonic()
            if predecessor is not None:
                predecessor.leave()
            predecessor = child
            await _first(child.left_accepting.wait(), restart.wait())
            failures = 0 if restart.is_set() or time.monotonic() - accepted_at > STEADY_S else failures + 1

    def _start(self) -> Child:
        child = Child(self._command, self._listening, self.changed.set)
        self._all.add(child)
        logger.info("gateway %d was started", child.pid)
        self.changed.set()
        return child

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._forget_ended()
            for child in self._all:
                child.end_if_silent()

    def _forget_ended(self) -> None:
        ended = {child for child in self._all if child.ended.is_set()}
        if ended:
            self._all -= ended
            self.changed.set()


def _started(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Returns when the first of them does; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
