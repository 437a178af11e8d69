"""When an answer is ready, the gateway's HTTP server reports a caller who has disconnected."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
import pytest
import uvicorn

from serving.gateway.request import Request
from serving.http import refusal_answer
from serving.refused import Refused

Message = MutableMapping[str, Any]


def disconnected(receive: Callable[[], Awaitable[Message]]) -> bool:
    return Request("POST", "/", {}, receive, 0).caller_disconnected()


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_uvicorn_reports_who_disconnected_and_asking_consumes_nothing(http: Any) -> None:
    asyncio.run(asyncio.wait_for(_two_callers(http), 20))


async def _two_callers(http: Any) -> None:
    asked, go_on = asyncio.Queue[None](), asyncio.Queue[None]()
    received: list[tuple[bool, bool]] = []

    async def app(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        assert (await receive())["body"] == b"hello"
        before = disconnected(receive)
        await asked.put(None)
        await go_on.get()
        received.append((before, disconnected(receive)))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, http=http, lifespan="off", log_config=None, access_log=False))
        serving = asyncio.create_task(server.serve([listening]))
        for stays in (True, False, True):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello")
            await asked.get()
            if not stays:
                writer.close()
                await writer.wait_closed()
                while server.server_state.connections:  # until the server has noticed it
                    await asyncio.sleep(0.01)
            await go_on.put(None)
            if stays:
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
                writer.close()
        server.should_exit = True
        await serving
    assert received == [(False, False), (False, True), (False, False)]


def test_a_status_without_a_standard_name_has_its_problem_document() -> None:
    answer = refusal_answer(Refused(499, "caller_disconnected", "the caller disconnected"))
    assert orjson.loads(answer.body)["status"] == 499
