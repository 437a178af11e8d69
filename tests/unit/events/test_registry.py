"""What each process asks the schema registry at its start, before a server that answers anything."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pydantic import SecretStr

from events.process.settings import Settings
from events.schema import registry
from events.schema.registry import RegistryUnavailable, SchemaRegistry

TEXT = '{"type": "string"}'


class Answers:
    """Path → (status, body); and what was asked."""

    def __init__(self) -> None:
        self.at: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.connections: set[tuple[str, int]] = set()


@pytest.fixture
def answers() -> Iterator[tuple[Answers, str]]:
    known = Answers()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known.asked.append((self.path, self.headers["Authorization"]))
            known.connections.add(self.client_address)
            status, body = known.at.get(self.path, (404, b'{"error_code": 40403}'))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield known, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_id_is_asked_for_under_its_subject_with_the_password_on_one_connection(answers: tuple[Answers, str]) -> None:
    known, url = answers
    asked = "/schemas/ids/7?subject=usage-a%2Fb"
    known.at[asked] = (200, json.dumps({"schema": TEXT}).encode())
    there = SchemaRegistry(Settings(registry_url=url, registry_user="market", registry_password=SecretStr("s3cret")))
    assert [there.schema("usage-a/b", 7), there.schema("usage-a/b", 8), there.schema("usage-a/b", 7)] == [TEXT, None, TEXT]
    assert {sign_in for _, sign_in in known.asked} == {"Basic " + base64.b64encode(b"market:s3cret").decode()}
    assert len(known.connections) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"broken"),
        (503, b""),
        (401, b"who are you"),
        (200, b"<html>"),
        (200, b"{}"),
        (200, b"[]"),
        (200, b'{"schema": "' + b"x" * 2000 + b'"}'),
    ],
)
def test_an_answer_that_says_nothing_of_the_schema_is_no_verdict(
    answers: tuple[Answers, str], monkeypatch: pytest.MonkeyPatch, status: int, body: bytes
) -> None:
    """The process waits and asks again; only a registry that does not know the id contradicts the log."""
    known, url = answers
    monkeypatch.setattr(registry, "ANSWER_BYTES_MAX", 1000)
    known.at["/schemas/ids/7?subject=s"] = (status, body)
    with pytest.raises(RegistryUnavailable, match="schema id 7"):
        SchemaRegistry(Settings(registry_url=url)).schema("s", 7)


def test_a_registry_that_does_not_answer_is_no_verdict() -> None:
    with pytest.raises(RegistryUnavailable, match="schema id 7"):
        SchemaRegistry(Settings(registry_url="http://127.0.0.1:1")).schema("s", 7)
