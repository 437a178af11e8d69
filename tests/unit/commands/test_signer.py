"""The market's signer over HTTP, and the gateway's client of it: who asks with the password gets a certificate for one epoch, and only for that."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from commands.signer.signer import BODY_BYTES_MAX, make_signer
from events.process.http_server import make_server
from events.process.passwords import signer_password, signer_password_file, signer_password_or_fresh
from events.process.settings import Settings
from events.process.signing_keys import SigningKey
from events.producers.epoch_key import EpochCertificate, is_certified
from infra.launcher.ports import free_block
from serving.metering.epoch_certificate import SignerRefused, SignerUnavailable, certified
from tests.support.servers.server_thread import running_server
from tests.support.todays_codec import MARKET_KEY, MARKET_KEYS, RELAY_KEY, settings_with_keys

PASSWORD, EPOCH_KEY = "the-password-of-the-gateways", SigningKey(bytes(32))
ASKED = {"log_id": "log", "producer": "gateway-1", "epoch": "e-1", "public_key": EPOCH_KEY.public.hex()}
WHOSE = ("log", "gateway-1", "e-1")


@contextmanager
def running(port: int = 0, key: SigningKey = MARKET_KEY, password: str = PASSWORD) -> Generator[str]:
    """The signer on a port of this process: its URL."""
    server = make_server(make_signer(key, password), "127.0.0.1", port, lifespan="off")
    with running_server(server):
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture(scope="module")
def signer() -> Generator[httpx.Client]:
    with running() as url, httpx.Client(base_url=url, headers={"Authorization": f"Bearer {PASSWORD}"}, timeout=10) as client:
        yield client


def certify_with(url: str, *, within_s: float = 10, **more: Any) -> EpochCertificate:
    settings = settings_with_keys(signer_url=url, **({"signer_password": PASSWORD} | more))
    return asyncio.run(certified(settings, *WHOSE, EPOCH_KEY.public, within_s=within_s))


# --- the signer


def test_a_certificate_counts_for_its_epoch_and_for_no_other(signer: httpx.Client) -> None:
    answer = signer.post("/v1/epochs", json=ASKED)
    assert answer.status_code == 200 and answer.json().keys() == {"signed_by", "certificate"}
    certificate = EpochCertificate(EPOCH_KEY.public, answer.json()["signed_by"], bytes.fromhex(answer.json()["certificate"]))
    assert is_certified(certificate, *WHOSE, MARKET_KEYS)
    for other in (("other", *WHOSE[1:]), ("log", "gateway-2", "e-1"), ("log", "gateway-1", "e-2"), ("log", "gateway-1e-1", "")):
        assert not is_certified(certificate, *other, MARKET_KEYS)


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", f"Bearer {PASSWORD}x", f"Bearer {PASSWORD[:-1]}", f"Basic {PASSWORD}", "Bearer " + "x" * 300]
)
def test_without_the_password_nothing_of_the_body_is_read(signer: httpx.Client, authorization: str | None) -> None:
    """The answer is there before the body that the head announces has come."""
    line = "" if authorization is None else f"Authorization: {authorization}\r\n"

    async def status_and_rest() -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(signer.base_url.host, signer.base_url.port)
        writer.write(f"POST /v1/epochs HTTP/1.1\r\nHost: x\r\n{line}Content-Length: 100\r\n\r\n".encode())
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        rest = await reader.read()
        writer.close()
        return status, rest

    status, rest = asyncio.run(asyncio.wait_for(status_and_rest(), 5))
    assert status == 401 and b"connection: close" in rest.lower() and b"credential_unknown" in rest


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"public_key": "ab"}, ["public_key"]),
        ({"public_key": "AB" * 32}, ["public_key"]),
        ({"public_key": EPOCH_KEY.public.hex() + "\n"}, ["public_key"]),
        ({"public_key": 7, "epoch": ""}, ["epoch", "public_key"]),
        ({"producer": "p" * 201}, ["producer"]),
        ({"log_id": None}, ["log_id"]),
        ({"more": 1}, ["more"]),
    ],
)
def test_a_bad_request_is_told_each_field_and_what_to_send(signer: httpx.Client, change: dict[str, Any], fields: list[str]) -> None:
    answer = signer.post("/v1/epochs", json=ASKED | change)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [violation["field"] for violation in answer.json()["violations"]] == fields
    assert all(violation["remedy"] and violation["message"] for violation in answer.json()["violations"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"epoch": "\\ud800"}'])
def test_what_is_no_json_object_is_refused(signer: httpx.Client, body: bytes) -> None:
    assert signer.post("/v1/epochs", content=body).status_code == 422


def test_a_body_has_a_bound_and_other_paths_and_methods_are_refused(signer: httpx.Client) -> None:
    assert signer.post("/v1/epochs", content=b" " * (BODY_BYTES_MAX + 1)).status_code == 413
    assert (signer.get("/v1/epochs").status_code, signer.get("/v1/epochs").headers["allow"]) == (405, "POST")
    assert signer.post("/v1/keys", json=ASKED).status_code == 404
    assert signer.post("/v1/epochs", json=ASKED | {"epoch": "\u2028" * 200, "producer": "\U0001f600" * 200}).status_code == 200


def test_each_certificate_is_a_line_in_the_log(signer: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "commands.signer.signer"):
        signer.post("/v1/epochs", json=ASKED)
        signer.post("/v1/epochs", json=ASKED | {"public_key": ""})
    (line,) = caplog.records
    assert {name: line.__dict__[name] for name in ("producer", "epoch", "key")} == {
        "producer": "gateway-1",
        "epoch": "e-1",
        "key": EPOCH_KEY.key_id,
    }


def test_anybody_may_ask_for_its_health(signer: httpx.Client) -> None:
    answer = httpx.get(f"{signer.base_url}/healthz", timeout=30)
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")


def test_the_password_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    assert signer_password(settings) == ""
    made = signer_password_or_fresh(settings)
    assert made == signer_password_or_fresh(settings) == signer_password(settings) and len(made) == 64
    assert stat.S_IMODE(signer_password_file(tmp_path).stat().st_mode) == 0o600
    given = Settings(data=tmp_path / "other", signer_password=PASSWORD)  # pyright: ignore[reportArgumentType]
    assert signer_password_or_fresh(given) == PASSWORD and not (tmp_path / "other").exists()


# --- the gateway's client


def test_a_gateway_has_its_key_certified() -> None:
    with running() as url:
        assert is_certified(certify_with(url), *WHOSE, MARKET_KEYS)


def test_a_gateway_waits_for_a_signer_that_starts_later(tmp_path: Path) -> None:
    """Nobody listens and there is no password yet when it asks first."""
    with free_block() as port:
        settings = settings_with_keys(data=tmp_path, signer_url=f"http://127.0.0.1:{port}")

        async def asked() -> EpochCertificate:
            asking = asyncio.create_task(certified(settings, *WHOSE, EPOCH_KEY.public, within_s=20))
            await asyncio.sleep(0.05)
            assert not asking.done()
            password = signer_password_or_fresh(settings)
            await asyncio.sleep(0.3)  # it has the password now, and is refused the connection
            assert not asking.done()
            starting = running(port, password=password)
            await asyncio.to_thread(starting.__enter__)
            try:
                return await asking
            finally:
                await asyncio.to_thread(starting.__exit__, None, None, None)

        assert is_certified(asyncio.run(asked()), *WHOSE, MARKET_KEYS)


def test_a_gateway_does_not_wait_for_ever() -> None:
    with free_block() as port:
        began = time.monotonic()
        with pytest.raises(SignerUnavailable, match=f"127.0.0.1:{port} did not answer within 0.5 s"):
            certify_with(f"http://127.0.0.1:{port}", within_s=0.5)
        assert time.monotonic() - began < 5


def test_a_wrong_password_or_key_is_said_at_once() -> None:
    with running() as url, pytest.raises(SignerRefused, match=r"HTTP 401 credential_unknown.*MODELMARKET_SIGNER_PASSWORD"):
        certify_with(url, signer_password="another")
    with running(key=RELAY_KEY) as url, pytest.raises(SignerRefused, match=rf"{RELAY_KEY.key_id}.*MODELMARKET_MARKET_PUBLIC_KEYS"):
        certify_with(url)
