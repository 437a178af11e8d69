"""Concurrent uploads are bounded per tenant and in total; an upload that ends frees its slot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from commands.api import build
from commands.artifacts import routes
from commands.artifacts.routes import TENANT_UPLOADS_MAX, UPLOADS_MAX
from commands.http.command_app import CommandApp
from commands.store.event_store import open_store
from events.log.client import Reader
from events.process.settings import Settings
from tests.support.todays_codec import todays_codec

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, str]]]:
    """The command API, and a key of each of four tenants. Nothing here needs the log."""
    settings = Settings(data=tmp_path_factory.mktemp("uploads"), admin_key=SecretStr("mm_first"), kafka_security_protocol="PLAINTEXT")
    app = CommandApp(settings, open_store(settings), todays_codec(), "log", Reader(settings, "test-uploads"))
    api = build(app)
    client, keys = TestClient(api, headers={"Authorization": "Bearer mm_first"}), dict[str, str]()
    for tenant in ("a", "b", "c", "d"):
        assert client.post("/v1/tenants", json={"tenant": tenant, "display_name": tenant}).status_code == 201
        keys[tenant] = client.post(f"/v1/tenants/{tenant}/keys", json={"scopes": ["models"]}).json()["api_key"]
    yield api, keys
    app.close()


class Upload:
    """An upload that has begun and sends the rest of its body when the test asks for it."""

    def __init__(self, api: Any, key: str) -> None:
        self._rest, self.begun = asyncio.Event(), asyncio.Event()
        self._messages: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "method": "PUT",
            "path": f"/v1/artifacts/{DIGEST}",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {key}".encode())],
        }
        self._task = asyncio.create_task(api(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self.begun.is_set():
            self.begun.set()
            return {"type": "http.request", "body": b"first", "more_body": True}
        await self._rest.wait()
        return {"type": "http.request", "body": b"last", "more_body": False}

    async def _send(self, message: dict[str, Any]) -> None:
        self._messages.append(message)

    async def answer(self, *, goes_on: bool) -> tuple[int, str]:
        if goes_on:
            self._rest.set()
        await asyncio.wait_for(self._task, 20)
        return self._messages[0]["status"], orjson.loads(self._messages[1]["body"])["code"]


def test_uploads_are_bounded_per_tenant_and_in_total_and_an_ended_one_frees_its_slot(side: tuple[Any, dict[str, str]]) -> None:
    api, keys = side

    async def begun(tenant: str) -> Upload:
        upload = Upload(api, keys[tenant])
        await asyncio.wait_for(upload.begun.wait(), 20)
        return upload

    async def refused(tenant: str) -> tuple[int, str]:
        return await Upload(api, keys[tenant]).answer(goes_on=False)

    async def test() -> None:
        of_a = [await begun("a") for _ in range(TENANT_UPLOADS_MAX)]
        assert await refused("a") == (429, "too_many_uploads")
        others = [await begun(tenant) for tenant in "bcbcbc"[: UPLOADS_MAX - TENANT_UPLOADS_MAX]]
        assert await refused("d") == (503, "uploads_busy")
        for upload in [*of_a, *others]:
            assert await upload.answer(goes_on=True) == (422, "digest_mismatch")
        assert await (await begun("a")).answer(goes_on=True) == (422, "digest_mismatch")

    asyncio.run(test())


@pytest.mark.parametrize(
    ("chunk", "answer"), [(b"x", (408, "upload_too_slow")), (b"x" * 4096, (422, "digest_mismatch"))], ids=["slow", "fast enough"]
)
def test_an_upload_that_trickles_frees_its_slot_long_before_its_time_is_over(
    side: tuple[Any, dict[str, str]], monkeypatch: pytest.MonkeyPatch, chunk: bytes, answer: tuple[int, str]
) -> None:
    api, keys = side
    monkeypatch.setattr(routes, "RATE_S", 0.2)
    monkeypatch.setattr(routes, "RATE_BYTES", 4096)  # one of the larger chunks: however slow this machine is, one begins each span

    class Trickling(Upload):
        """Sends what is fast enough for a second, and what is not for ever."""

        sent = 0

        async def _receive(self) -> dict[str, Any]:
            await asyncio.sleep(0.05)
            self.sent += 1
            return {"type": "http.request", "body": chunk, "more_body": len(chunk) == 1 or self.sent < 20}

    async def test() -> None:
        assert await Trickling(api, keys["a"]).answer(goes_on=False) == answer

    asyncio.run(test())
