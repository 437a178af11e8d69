"""A silent or slow client, or one without a key, holds no connection and no body, and takes no share of other clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from events.process.fairness.http_turns import InTurn
from events.process.fairness.turns import TurnBounds
from events.process.http_admission import Admission, NotAdmitted
from events.process.http_api import make_api
from events.process.http_server import make_server
from events.process.openapi import problems
from events.process.problem import Violation

TENANTS = {b"one": "acme", b"two": "acme", b"three": "globex"}
IN_TIME_S = 20
ONE_EACH = TurnBounds(running_max=4, alone_max=1, shared_max=1, waiting_max=6, wait_s_max=20)
BODY_BYTES_MAX = 100


@dataclass(frozen=True)
class Who:
    tenant: str


async def identify(authorization: bytes) -> Who:
    if authorization not in TENANTS:
        raise NotAdmitted(401, Violation("key_unknown", "no", "Authorization", "send a key"), {"WWW-Authenticate": "Bearer"})
    return Who(TENANTS[authorization])


class Api:
    """An API that holds each request until the test lets it answer. A path below `/raw` has a body that the route reads as it comes."""

    def __init__(self, idle_s: float = 5, turns: TurnBounds | None = None, requests_max: int = 2, **bounds: Any) -> None:
        self.bounds = bounds
        self.asked, self.go_on = asyncio.Queue[str](), asyncio.Event()
        self.go_on.set()
        self.app: FastAPI = make_api("test", "", problems(422))

        @self.app.post("/echo")
        async def echo(request: Request) -> dict[str, int]:  # pyright: ignore[reportUnusedFunction]
            await self.asked.put("")
            size = len(await request.body())
            await self.go_on.wait()
            return {"size": size}

        self.app.add_api_route("/raw", echo, methods=["POST"])
        if turns is not None:
            self.app.add_middleware(InTurn, bounds=turns, body_bytes_max=lambda scope: None if scope["path"] == "/raw" else BODY_BYTES_MAX)
        self.app.add_middleware(Admission, identify=identify, tenant_requests_max=requests_max, idle_s=idle_s, too_many_s=0.1)
        self.port = 0

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, head: bytes, body: bytes = b"", path: bytes = b"/echo") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.open()
        writer.write(b"POST " + path + b" HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n" + body)
        return reader, writer

    async def status(self, head: bytes, body: bytes = b"") -> int:
        reader, writer = await self.send(head, body)
        found = await status_of(reader)
        writer.close()
        return found


async def status_of(reader: asyncio.StreamReader) -> int:
    return int((await reader.readuntil(b"\r\n")).split()[1])


@asynccontextmanager
async def running(api: Api) -> AsyncGenerator[Api]:
    server = make_server(api.app, "127.0.0.1", 0, **api.bounds)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    api.port = server.servers[0].sockets[0].getsockname()[1]
    yield api
    server.should_exit = True
    await serving


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), IN_TIME_S))


def test_silent_and_slow_connections_are_closed_and_delay_nobody() -> None:
    async def test() -> None:
        async with running(Api(headers_s_max=0.5, connections_max=8)) as api:
            silent = [await api.open() for _ in range(9)]
            slow, trickle = await api.open()

            async def drip() -> None:
                for byte in b"POST /echo HTTP/1.1\r\nx-header: " + b"a" * 10_000:
                    trickle.write(bytes([byte]))
                    await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            for reader, _ in [*silent, (slow, trickle)]:
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            dripping.cancel()
            assert await api.status(b"authorization: one\r\ncontent-length: 2\r\n", b"hi") == 200

    run(test)


def test_a_connection_may_be_silent_after_an_answer_and_a_slow_second_head_ends_it() -> None:
    async def test() -> None:
        async with running(Api(headers_s_max=0.5)) as api:
            reader, writer = await api.send(b"authorization: one\r\ncontent-length: 2\r\n", b"hi")
            assert await status_of(reader) == 200
            await reader.readuntil(b'{"size":2}')
            await asyncio.sleep(0.7)  # longer than a head may take
            writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\nauthorization: one\r\ncontent-length: 0\r\n\r\n")
            assert await status_of(reader) == 200
            await reader.readuntil(b'{"size":0}')
            writer.write(b"POST /echo HT")
            with suppress(ConnectionResetError):
                assert await reader.read() == b""

    run(test)


def test_endless_headers_end_the_connection() -> None:
    async def test() -> None:
        async with running(Api(headers_s_max=60)) as api:
            reader, writer = await api.open()
            writer.write(b"POST /echo HTTP/1.1\r\n")
            try:
                for _ in range(100):
                    writer.write(b"x-more: " + b"a" * 8000 + b"\r\n")
                    await writer.drain()
                await reader.read()
            except ConnectionError:
                pass
            assert await api.status(b"authorization: one\r\ncontent-length: 0\r\n") == 200

    run(test)


def test_one_address_has_its_share_of_the_connections_and_gets_it_back() -> None:
    async def test() -> None:
        async with running(Api(headers_s_max=60, address_max=3)) as api:
            head = b"content-length: 0\r\nconnection: close\r\n"
            api.go_on.clear()
            held = [await api.send(b"authorization: %b\r\n" % key + head) for key in (b"one", b"two", b"three")]
            for _ in held:
                await api.asked.get()
            assert await api.status(b"authorization: one\r\n" + head) == 429, "requests under way keep their connections"
            api.go_on.set()
            assert [await status_of(reader) for reader, _ in held] == [200] * 3
            while (status := await api.status(b"authorization: one\r\n" + head)) == 429:
                await asyncio.sleep(0.01)
            assert status == 200

    run(test)


@pytest.mark.parametrize("bounds", [{"address_max": 4}, {"connections_max": 4, "address_max": 4}], ids=["one address", "the whole server"])
@pytest.mark.parametrize("answered", [False, True], ids=["silent", "idle after an answer"])
def test_connections_that_ask_nothing_refuse_nobody(bounds: dict[str, Any], answered: bool) -> None:
    async def test() -> None:
        async with running(Api(headers_s_max=60, **bounds)) as api:
            held = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()
            for _ in range(8):  # the newest take the places of the oldest
                held.append(await api.open())
                if answered:
                    held[-1][1].write(b"POST /echo HTTP/1.1\r\nhost: x\r\nauthorization: one\r\ncontent-length: 2\r\n\r\nhi")
                    assert await status_of(held[-1][0]) == 200
            for _ in range(3):
                reader, writer = await api.send(b"authorization: one\r\ncontent-length: 2\r\n", b"hi")
                assert await status_of(reader) == 200
                held.append((reader, writer))

    run(test)


def test_the_oldest_silent_connection_gives_way_before_any_other() -> None:
    async def test() -> None:
        async with running(Api(headers_s_max=60, address_max=4)) as api:
            idle, idle_writer = await api.send(b"authorization: one\r\ncontent-length: 2\r\n", b"hi")
            assert await status_of(idle) == 200
            await idle.readuntil(b'{"size":2}')
            api.go_on.clear()
            busy, _ = await api.send(b"authorization: one\r\ncontent-length: 2\r\n", b"hi")
            assert [await api.asked.get() for _ in range(2)] == [""] * 2
            oldest, _ = await api.open()
            younger, younger_writer = await api.open()
            new, _ = await api.send(b"authorization: three\r\ncontent-length: 2\r\n", b"hi")
            with suppress(ConnectionResetError):
                assert await oldest.read() == b""
            await api.asked.get()
            api.go_on.set()
            assert [await status_of(reader) for reader in (busy, new)] == [200] * 2
            for reader, writer in ((idle, idle_writer), (younger, younger_writer)):
                writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\nauthorization: one\r\ncontent-length: 2\r\n\r\nhi")
                assert await status_of(reader) == 200

    run(test)


def test_without_a_key_no_body_is_read_and_no_route_is_called() -> None:
    async def test() -> None:
        async with running(Api()) as api:
            for head in (b"", b"authorization: nobody\r\n"):
                reader, _ = await api.send(head + b"content-length: 15000000\r\n", b"{")
                answer = await reader.read()  # to its end: the connection is closed
                assert answer.startswith(b"HTTP/1.1 401") and b"application/problem+json" in answer
            assert api.asked.empty()

    run(test)


def test_a_request_whose_body_does_not_arrive_is_ended() -> None:
    async def test() -> None:
        async with running(Api(idle_s=0.3)) as api:
            assert await api.status(b"authorization: one\r\ncontent-length: 10\r\n", b"12345") == 408

    run(test)


def test_a_tenant_has_a_share_of_the_requests_whatever_its_keys_and_others_go_on() -> None:
    async def test() -> None:
        async with running(Api()) as api:
            api.go_on.clear()
            waiting = [await api.send(b"authorization: %b\r\ncontent-length: 0\r\n" % key) for key in (b"one", b"two")]
            for _ in waiting:
                await api.asked.get()
            assert await api.status(b"authorization: one\r\ncontent-length: 0\r\n") == 429
            other, _ = await api.send(b"authorization: three\r\ncontent-length: 0\r\n")
            await api.asked.get()
            api.go_on.set()
            assert [await status_of(reader) for reader in (other, *(r for r, _ in waiting))] == [200] * 3
            assert await api.status(b"authorization: one\r\ncontent-length: 0\r\n") == 200

    run(test)


def of(key: bytes, length: int = 0) -> bytes:
    return b"authorization: %b\r\ncontent-length: %d\r\n" % (key, length)


def test_another_tenants_request_is_worked_on_at_once_whatever_waits() -> None:
    async def test() -> None:
        async with running(Api(turns=ONE_EACH, requests_max=100)) as api:
            api.go_on.clear()
            loud = [await api.send(of(b"one")) for _ in range(4)]
            await api.asked.get()
            quiet, _ = await api.send(of(b"three"))
            await api.asked.get()
            assert await api.status(of(b"one")) == 429, "three wait, and as many are free"
            assert api.asked.empty(), "nothing is done for those who wait"
            api.go_on.set()
            assert [await status_of(reader) for reader in (quiet, *(r for r, _ in loud))] == [200] * 5

    run(test)


def test_a_slow_body_keeps_no_turn_and_a_slow_upload_gives_it_back() -> None:
    async def test() -> None:
        async with running(Api(turns=ONE_EACH, requests_max=100)) as api:
            slow, writer = await api.send(of(b"one", 10), b"12345")
            upload, upload_writer = await api.send(of(b"one", 10), b"12345", b"/raw")
            await api.asked.get()
            assert await api.status(of(b"one", 2), b"hi") == 200
            writer.write(b"67890")
            assert await status_of(slow) == 200
            upload_writer.write(b"67890")
            assert await status_of(upload) == 200

    run(test)


def test_a_slow_reader_keeps_no_turn() -> None:
    async def test() -> None:
        api = Api(turns=ONE_EACH, requests_max=100)

        @api.app.get("/large")
        async def large() -> Response:  # pyright: ignore[reportUnusedFunction]
            return StreamingResponse(iter([bytes(16 << 20)] * 3))

        async with running(api):
            reader, writer = await api.open()
            writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\nauthorization: one\r\n\r\n")
            assert await status_of(reader) == 200  # and reads no more of it
            assert await api.status(of(b"one", 2), b"hi") == 200

    run(test)


def test_a_body_that_is_too_long_is_refused_whatever_it_announced() -> None:
    async def test() -> None:
        async with running(Api(turns=ONE_EACH)) as api:
            assert await api.status(of(b"one", 101), b"a" * 101) == 413
            chunked = b"authorization: one\r\ntransfer-encoding: chunked\r\n"
            assert await api.status(chunked, b"3c\r\n" + b"a" * 60 + b"\r\n" + b"3c\r\n" + b"a" * 60 + b"\r\n0\r\n\r\n") == 413
            assert await api.status(of(b"one", 100), b"a" * 100) == 200

    run(test)


def test_a_refused_request_without_a_body_keeps_its_connection() -> None:
    async def test() -> None:
        async with running(Api()) as api:
            reader, writer = await api.open()
            for _ in range(3):
                writer.write(b"GET /echo HTTP/1.1\r\nhost: x\r\nauthorization: nobody\r\n\r\n")
                assert await status_of(reader) == 401
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))

    run(test)


def test_a_flood_of_malformed_requests_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with running(Api()) as api:
            for _ in range(20):
                reader, writer = await api.open()
                writer.write(b"NONSENSE\r\n\r\n")
                assert (await reader.read()).startswith(b"HTTP/1.1 400")

    run(test)
    assert len([r for r in caplog.records if r.getMessage().startswith("Invalid HTTP request")]) <= 1
