"""Every listener answers the same about a key: code, status, message, field, remedy and challenge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from access.bearer import digest_of
from access.codes import KEY_EXPIRED, KEY_MALFORMED, KEY_MISSING, KEY_REVOKED, KEY_UNKNOWN, TENANT_FOREIGN, Refusal, scope_missing
from access.keys import Keys
from commands.api import build
from commands.http.command_app import CommandApp
from commands.store.event_store import open_store
from events.facts.accounts import KEY_DIMENSIONS
from events.log.client import Reader
from events.log.record import Coordinate
from events.process.clock import now_us
from events.process.settings import Settings
from projections.ingest.clickhouse import ClickHouse
from projections.query_api.app import make_app
from projections.query_api.keys_from_log import KeysFromLog
from projections.query_api.request_context import Queries
from serving.gateway.identify import identify, require
from serving.http import refusal_answer
from serving.refused import Refused
from tests.support.todays_codec import todays_codec

AT = Coordinate("accounts", 0, 0)
WORDS = dict.fromkeys(KEY_DIMENSIONS, "")


def issued(name: str, *scopes: str, expires_at: int | None = None) -> dict[str, Any]:
    who = {"tenant": "acme", "key_id": name, "user": "u", "scopes": list(scopes), "labels": {}, "expires_at": expires_at}
    return who | WORDS | {"key_sha256": digest_of(f"mm_{name}".encode()).hex()}


FACTS: list[tuple[str, dict[str, Any]]] = [
    ("ApiKeyIssued", issued("good", "read", "invoke", "models")),
    ("ApiKeyIssued", issued("weak", "review:business")),
    ("ApiKeyIssued", issued("old", "read", expires_at=now_us() - 1)),
    ("ApiKeyIssued", issued("gone", "read")),
    ("ApiKeyRevoked", {"tenant": "acme", "key_id": "gone"}),
]


@dataclass(frozen=True)
class Answer:
    """What a caller gets to see of a refusal."""

    status: int
    violations: list[dict[str, str]]
    challenge: str


def expected(refusal: Refusal) -> Answer:
    return Answer(refusal.status, [asdict(refusal.violation)], refusal.challenge)


COMMANDS: dict[str, Any] = {}
"""The client of a command API, and the secrets of its keys by name."""


@pytest.fixture(scope="module", autouse=True)
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The command API on a store of its own. Nothing here needs the log."""
    settings = Settings(data=tmp_path_factory.mktemp("commands"), admin_key=SecretStr("mm_first"), kafka_security_protocol="PLAINTEXT")
    app = CommandApp(settings, open_store(settings), todays_codec(), "log", Reader(settings, "test-access"))
    client = TestClient(build(app))

    def post(path: str, **body: Any) -> dict[str, Any]:
        answer = client.post(path, json=body, headers={"Authorization": "Bearer mm_first"})
        assert answer.status_code == 201, answer.text
        return answer.json()

    post("/v1/tenants", tenant="acme", display_name="Acme")
    keys = {
        "good": post("/v1/tenants/acme/keys", scopes=["models"]),
        "weak": post("/v1/tenants/acme/keys", scopes=["review:business"]),
        "old": post("/v1/tenants/acme/keys", scopes=["models"], expires_at=(ends := now_us() + 1_000_000)),
        "gone": post("/v1/tenants/acme/keys", scopes=["models"]),
    }
    client.delete(f"/v1/tenants/acme/keys/{keys['gone']['key_id']}", headers={"Authorization": "Bearer mm_first"})
    while now_us() < ends:
        time.sleep(0.02)
    COMMANDS.update(client=client, secrets={name: key["api_key"] for name, key in keys.items()})
    yield
    app.close()


def command_api(authorization: str | None, tenant: str) -> Answer:
    headers = {} if authorization is None else {"Authorization": authorization}
    for name, secret in COMMANDS["secrets"].items():
        headers = {header: value.replace(f"mm_{name}", secret) for header, value in headers.items()}
    answer = COMMANDS["client"].put(f"/v1/artifacts/sha256:{'0' * 64}", params={"tenant": tenant} if tenant else {}, headers=headers)
    return Answer(answer.status_code, answer.json()["violations"], answer.headers.get("WWW-Authenticate", ""))


def query_api(authorization: str | None, tenant: str) -> Answer:
    accounts = KeysFromLog()
    for name, body in FACTS:
        accounts.apply(name, body, AT)
    client = TestClient(make_app(Queries(ClickHouse(Settings()), accounts, lambda: 0.0, lambda: True, 60)))
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = client.get("/v1/bills", params={"tenant": tenant} if tenant else {}, headers=headers)
    return Answer(answer.status_code, answer.json()["violations"], answer.headers.get("WWW-Authenticate", ""))


def gateway(authorization: str | None, tenant: str) -> Answer:
    assert not tenant, "a call names no tenant: it is always the key's own"
    keys = Keys()
    for name, body in FACTS:
        keys.apply(name, body)
    with pytest.raises(Refused) as refused:
        require(identify(keys, None if authorization is None else authorization.encode(), now_us()), "invoke")
    answer = refusal_answer(refused.value)
    return Answer(answer.status, orjson.loads(answer.body)["violations"], dict(answer.headers).get(b"www-authenticate", b"").decode())


Listener = Callable[[str | None, str], Answer]
LISTENERS: dict[Listener, str] = {command_api: "models", query_api: "read", gateway: "invoke"}
"""Each listener, and the scope that its question here needs."""

REFUSALS: list[tuple[str | None, Refusal]] = [
    (None, KEY_MISSING),
    ("", KEY_MISSING),
    ("Basic YTpi", KEY_MALFORMED),
    ("Bearer", KEY_MALFORMED),
    ("Bearer two words", KEY_MALFORMED),
    ("Bearer " + "x" * 5000, KEY_MALFORMED),
    ("Bearer mm_unknown", KEY_UNKNOWN),
    ("Bearer mm_old", KEY_EXPIRED),
    ("Bearer mm_gone", KEY_REVOKED),
]


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(("authorization", "refusal"), REFUSALS, ids=lambda x: x.code if isinstance(x, Refusal) else None)
def test_an_invalid_key_gets_the_same_refusal_from_every_listener(listener: Listener, authorization: str | None, refusal: Refusal) -> None:
    assert listener(authorization, "") == expected(refusal)


@pytest.mark.parametrize("listener", LISTENERS)
def test_a_key_without_the_scope_gets_the_same_refusal_from_every_listener(listener: Listener) -> None:
    assert listener("Bearer mm_weak", "") == expected(scope_missing(LISTENERS[listener]))


@pytest.mark.parametrize("listener", [name for name in LISTENERS if name is not gateway])
def test_a_foreign_tenant_gets_the_same_refusal_wherever_a_request_can_name_one(listener: Listener) -> None:
    assert listener("Bearer mm_good", "globex") == expected(TENANT_FOREIGN)


@pytest.mark.parametrize("name", ["commands", "queries"])
def test_every_operation_checks_the_key_first(name: str) -> None:
    queries = Queries(ClickHouse(Settings()), KeysFromLog(), lambda: 0.0, lambda: True, 60)
    client = COMMANDS["client"] if name == "commands" else TestClient(make_app(queries))
    asked = 0
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method in operations.keys() - ({"get"} if path == "/healthz" else set()):
            answer = client.request(
                method, path.replace("{", "!").replace("}", "!") + "?limit=many", content=b'{"', headers={"If-Match": "x"}
            )
            refusal = Answer(answer.status_code, answer.json()["violations"], answer.headers.get("WWW-Authenticate", ""))
            assert refusal == expected(KEY_MISSING), (method, path)
            asked += 1
    assert asked > 5
