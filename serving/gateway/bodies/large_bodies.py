"""Large bodies and large answers go to another process, one at a time, the tenants in turn: they hold the event loop for no caller.

A parser holds the interpreter, so a thread would not help. One process does the work of a gateway: processors are few, and a large call
waits for others of its size instead of everybody waiting for it. It is started at the first large body and ended when none came for a
while. What ends it, a body included, costs the one item that it had; the next one gets a new process.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from events.process.fairness.fair_queue import FairQueue, QueueFull
from serving.gateway.bodies.body_process import PREFIX, READY, inference_of, parse_head, render_head, rendered_of, too_complex
from serving.gateway.request import Request
from serving.gateway.served_models import Version
from serving.inference import Inference, OutputTensor, Raw
from serving.model_interface import Interface
from serving.protocols.operations import InferenceFormat
from serving.refused import Headers, Refused, unavailable

logger = logging.getLogger(__name__)

HERE_BYTES_MAX = 64 << 10
"""What is parsed or written on the event loop: at worst (empty texts) 5 ms of a core of 2026, so 20 ms on one of a third of its speed."""
NUMBERS_HERE_BYTES_MAX = 4 << 20
"""Numbers in binary tensors are checked all at once: 3 ms at worst (FP16), less than to send them to another process and back."""
ITEMS_MAX, ITEMS_BYTES_MAX = 512, 256 << 20
"""Waiting for the process: some seconds of its time."""
CPU_S_MAX = 5.0
"""For one item: 4 MiB take half a second at worst. CPU time, so that no body is refused because the machine is busy."""
ITEM_S_MAX, START_S_MAX = 60.0, 60.0
"""By the clock: past it something is wrong with the process, or with the machine."""
IDLE_S_MAX = 60.0
MEMORY_BYTES_MIN, MEMORY_PER_BODY = 1 << 30, 128
"""Address space of the process. A body takes up to eighty times its size while it is parsed (short texts)."""
REPLY_HEAD_BYTES_MAX, REPLY_BYTES_MAX = 1 << 20, 512 << 20
READ_BYTES_MAX = 256 << 10
"""In one turn of the event loop."""
JOINED_HERE_BYTES_MAX = 4 << 20
_ROOT = Path(__file__).resolve().parents[3]
_BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
"""What a process that ended, or that answers what it should not, raises here."""


def parsed_here(body_format: InferenceFormat, request: Request, interface: Interface) -> bool:
    """Whether a body is parsed on the event loop. Raises Refused (400) as parsing it would."""
    size = len(request.body)
    if size <= HERE_BYTES_MAX:
        return True
    return size <= NUMBERS_HERE_BYTES_MAX and body_format.text_bytes(request.headers, size, interface) <= HERE_BYTES_MAX


def rendered_here(inference: Inference, outputs: Sequence[OutputTensor]) -> bool:
    """Whether an answer is written on the event loop: binary outputs are only copied."""
    size = 0
    for (_, as_binary), output in zip(inference.wanted, outputs, strict=True):
        if not as_binary:
            size += len(output.data)
    return size <= HERE_BYTES_MAX


@dataclass(slots=True, eq=False)
class Item:
    """One frame for the process, and the call that waits for what `decode` makes of the frame back. `disconnected`: that of its caller."""

    tenant: str
    head: bytes
    payload: Sequence[Raw]
    decode: Callable[[dict[str, Any], bytes], Any]
    disconnected: Callable[[], bool]
    future: asyncio.Future[Any]
    size: int


class LargeBodies:
    """Of one event loop, until `close`. `body_bytes_max`: the largest request body."""

    def __init__(self, body_bytes_max: int) -> None:
        self._memory_bytes = max(MEMORY_BYTES_MIN, MEMORY_PER_BODY * body_bytes_max)
        self._waiting = FairQueue[Item](ITEMS_MAX, ITEMS_BYTES_MAX)
        self._process: BodyProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._added = asyncio.Event()
        self._closed = False

    async def parse(self, body_format: InferenceFormat, request: Request, version: Version) -> Inference:
        """What `body_format.parse` returns or raises. Raises Refused, too: 429 and 503 (try again), 422, 499 without the caller."""
        head = parse_head(body_format, request.headers, version.interface)
        return await self._ask(request, version, head, (request.body,), inference_of)

    async def render(
        self, body_format: InferenceFormat, request: Request, version: Version, call: tuple[Inference, Sequence[OutputTensor]]
    ) -> tuple[bytes, Headers]:
        """What `body_format.render` returns. Raises Refused as `parse` does, with a code that says it is about the answer."""
        inference, outputs = call
        head = render_head(body_format, version, inference, outputs)
        try:
            return await self._ask(request, version, head, [o.data for o in outputs], rendered_of)
        except Refused as e:
            code = "caller_disconnected" if e.status == 499 else "answer_not_written"
            remedy = "ask for binary outputs, or for fewer rows at a time, with the same Idempotency-Key"
            raise Refused(e.status, code, f"the answer could not be written: {e.message}", "", remedy, headers=e.headers) from e

    async def close(self) -> None:
        """Ends the process; whoever still waits is refused (503)."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while self._waiting:
            _refuse(self._waiting.take(), unavailable("stopping", "the gateway is stopping"))
        await self._end_process()

    # --- waiting

    async def _ask(self, request: Request, version: Version, head: bytes, payload: Sequence[Raw], decode: Callable[..., Any]) -> Any:
        assert request.caller is not None
        if self._closed:
            raise unavailable("stopping", "the gateway is stopping")
        loop = asyncio.get_running_loop()
        size = sum(map(len, payload))
        item = Item(request.caller.tenant, head, payload, decode, request.caller_disconnected, loop.create_future(), size)
        self._put(item)
        self._added.set()
        if self._task is None or self._task.done():
            # An empty context: Serve finds tasks by it, and one caller's disconnect must not cancel the work for all.
            self._task = loop.create_task(self._work(), context=Context())
        timer = loop.call_later(version.spec.timeout_us / 1e6, self._expire, item)
        try:
            return await item.future
        finally:
            timer.cancel()
            self._waiting.discard(item.tenant, item)  # a call that was cancelled

    def _put(self, item: Item) -> None:
        """Raises Refused (429). The tenant's items whose callers have gone make room first."""
        try:
            self._waiting.put(item.tenant, item, item.size)
        except QueueFull:
            for gone in [i for i in self._waiting.of(item.tenant) if i.disconnected()]:
                self._waiting.discard(gone.tenant, gone)
                _refuse(gone, _disconnected())
            try:
                self._waiting.put(item.tenant, item, item.size)
            except QueueFull as full:
                message = f"no room is left for another large body or answer of yours: {full.items} with {full.bytes} bytes wait already"
                remedy = "send fewer large calls at once, or numbers as binary tensors; then retry"
                raise Refused(429, "too_many_large_bodies", message, "", remedy, headers=((b"retry-after", b"1"),)) from None

    def _expire(self, item: Item) -> None:
        """A call waits for its turn no longer than it may take to execute."""
        if self._waiting.discard(item.tenant, item):
            _refuse(item, unavailable("large_bodies_wait", "other large bodies and answers came first"))

    # --- work

    async def _work(self) -> None:
        """Until nothing came for a while."""
        while await self._something_waits():
            item = self._waiting.take()
            try:
                if item.disconnected():
                    raise _disconnected()
                result = await self._done(item)
            except asyncio.CancelledError:
                _refuse(item, unavailable("stopping", "the gateway is stopping"))
                raise
            except Exception as e:  # whatever it was, no caller may be left waiting for it
                _refuse(item, e)
            else:
                if not item.future.done():
                    item.future.set_result(result)

    async def _something_waits(self) -> bool:
        """Now, or after a while; else the process is ended."""
        if not self._waiting:
            self._added.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S_MAX):
                    await self._added.wait()
            if not self._waiting:
                await self._end_process()
        return bool(self._waiting)

    async def _done(self, item: Item) -> Any:
        """What the process made of it. Raises Refused; RuntimeError for a mistake of ours."""
        try:
            if self._process is None or not self._process.alive:
                await self._end_process()
                self._process = await BodyProcess.start(self._memory_bytes)
            async with asyncio.timeout(ITEM_S_MAX):
                return item.decode(*await self._process.exchange(item.head, item.payload))
        except _BROKEN as e:
            status = await self._end_process()
            logger.warning("the process for large bodies ended (%s) with an item of %s: %r", status, item.tenant, e)
            if status == -signal.SIGPROF:
                raise too_complex("CPU time") from None
            raise unavailable("parser_lost", "the process that had this body or answer ended") from e

    async def _end_process(self) -> int | None:
        """How it ended, if there was one: its exit status, or minus its signal."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        return await process.end()


class BodyProcess:
    """`serving.gateway.bodies.body_process`, running: our end of its socket."""

    def __init__(self, memory_bytes: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "serving.gateway.bodies.body_process", str(memory_bytes), str(CPU_S_MAX)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=_ROOT,
                env={"OPENBLAS_NUM_THREADS": "1"},  # no key, no password, no address; no threads whose stacks fill the address space
            )

    @classmethod
    async def start(cls, memory_bytes: int) -> BodyProcess:
        """Raises OSError, EOFError, ValueError."""
        process = await asyncio.to_thread(cls, memory_bytes)
        try:
            async with asyncio.timeout(START_S_MAX):
                if await process.frame() != (READY, b""):
                    raise ValueError("it does not begin as it should")
        except BaseException:
            await process.end()
            raise
        return process

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def exchange(self, head: bytes, payload: Sequence[Raw]) -> tuple[Any, bytes]:
        """The frame back."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, PREFIX.pack(len(head), sum(map(len, payload))) + head)
        for part in payload:
            await loop.sock_sendall(self._socket, part)
        return await self.frame()

    async def frame(self) -> tuple[Any, bytes]:
        """The next one. Raises EOFError, OSError, ValueError."""
        head_size, size = PREFIX.unpack(await self._read(PREFIX.size))
        if head_size > REPLY_HEAD_BYTES_MAX or size > REPLY_BYTES_MAX:
            raise ValueError(f"a frame of {head_size} and {size} bytes")
        return orjson.loads(await self._read(head_size)), await self._read(size)

    async def _read(self, size: int) -> bytes:
        loop, parts, left = asyncio.get_running_loop(), list[bytes](), size
        while left:
            part = await loop.sock_recv(self._socket, min(left, READ_BYTES_MAX))
            if not part:
                raise EOFError("it ended")
            parts.append(part)
            left -= len(part)
            await asyncio.sleep(0)  # what is there already is read without a turn of the loop
        return (
            b"".join(parts) if size <= JOINED_HERE_BYTES_MAX else await asyncio.to_thread(b"".join, parts)
        )  # large: without the interpreter

    async def end(self) -> int:
        """At once: it keeps nothing."""
        self._socket.close()
        self._popen.kill()
        return await asyncio.to_thread(self._popen.wait)


def _refuse(item: Item, refused: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(refused)


def _disconnected() -> Refused:
    return Refused(499, "disconnected", "the caller disconnected while its call waited", "", "call again with the same Idempotency-Key")
