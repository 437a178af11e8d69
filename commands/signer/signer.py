"""The market's signer: alone it holds the market's key, with which it certifies the public key of each producer epoch (K13).

A process of its own that remembers nothing and reads nothing but its key and its password: who asks with the gateways' password gets what
it asks for. `POST /v1/epochs` takes `EpochRequest` and answers {"signed_by", "certificate"}, the fields of
`events/producers/epoch_key.py`: id of the key, signature in hexadecimal. Refusals are problem documents (RFC 9457).
"""

from __future__ import annotations

import hmac
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from access.bearer import digest_of, secret_of
from access.codes import Refusal
from events.facts.fact import Line
from events.process.http_admission import Admission, App, Identify, Message, NotAdmitted, Receive, Send
from events.process.http_server import make_server
from events.process.json_logging import start_logging
from events.process.passwords import signer_password_or_fresh
from events.process.problem import PROBLEM_JSON, Violation, problem
from events.process.settings import Settings
from events.process.signing_keys import KeyMissing, SigningKey, key_id_of, mint_keys, public_keys, signing_key
from events.producers.epoch_key import certify

logger = logging.getLogger(__name__)

PATH, METHOD = "/v1/epochs", "POST"
BODY_BYTES_MAX = 4 << 10
"""Three texts and a key; texts of 200 characters, each escaped, fit."""
REQUESTS_MAX = 64
"""Under way at once, of all gateways: each asks once in its life."""
_NOT_KNOWN = Violation(
    "credential_unknown",
    "this is not the password with which gateways ask the signer",
    "Authorization",
    "send 'Authorization: Bearer …' with MODELMARKET_SIGNER_PASSWORD, or what is in keys/signer.password of the data folder",
)
_REMEDIES = {
    "public_key": "send the 32 bytes of an Ed25519 public key as 64 digits of 0-9 and a-f",
    **dict.fromkeys(("log_id", "producer", "epoch"), "send a text of 1 to 200 characters"),
}


class EpochRequest(BaseModel):
    """Whose key it is: the epoch of a producer on one log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_id: Line
    producer: Line
    epoch: Line
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class _Gateways:
    """Whoever sends the password: all gateways have one."""

    tenant: str = ""


def make_signer(market_key: SigningKey, password: str) -> App:
    """The ASGI application."""
    return Admission(_Signer(market_key), _identify(password), REQUESTS_MAX)


def _identify(password: str) -> Identify:
    expected, gateways = digest_of(password.encode()), _Gateways()

    async def identify(authorization: bytes) -> _Gateways:
        secret = secret_of(authorization)
        if isinstance(secret, Refusal) or not hmac.compare_digest(digest_of(secret), expected):
            raise NotAdmitted(401, _NOT_KNOWN, {"WWW-Authenticate": 'Bearer realm="signer"'})
        return gateways

    return identify


class _Signer:
    def __init__(self, market_key: SigningKey) -> None:
        self._market_key = market_key

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            status, document = await self._answer(scope, receive)
            headers: Mapping[str, str] = {"Content-Type": "application/json" if status == 200 else PROBLEM_JSON}
        except HTTPException as e:  # before the whole body was read, so the connection ends
            status, document = e.status_code, problem(e.status_code, [Violation("refused", e.detail, "", f"send {METHOD} {PATH}")])
            headers = {"Content-Type": PROBLEM_JSON, **(e.headers or {}), "Connection": "close"}
        body = orjson.dumps(document)
        sent = [(name.lower().encode(), value.encode()) for name, value in {**headers, "Content-Length": str(len(body))}.items()]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Message, receive: Receive) -> tuple[int, dict[str, Any]]:
        match scope["path"], scope["method"]:
            case "/healthz", _:
                return 200, {"status": "ready", "lag": None}
            case path, method if (path, method) == (PATH, METHOD):
                return self._certified(await _body(receive))
            case path, _ if path == PATH:
                raise HTTPException(405, "this takes one method only", {"Allow": METHOD})
            case _:
                raise HTTPException(404, "there is nothing at this path")

    def _certified(self, body: bytes) -> tuple[int, dict[str, Any]]:
        try:
            asked = EpochRequest.model_validate_json(body)
        except ValidationError as e:
            return 422, problem(422, _violations(e))
        public_key = bytes.fromhex(asked.public_key)
        certificate = certify(self._market_key, asked.log_id, asked.producer, asked.epoch, public_key)
        whose = {"producer": asked.producer, "epoch": asked.epoch, "key": key_id_of(public_key)}
        logger.info("certified the key of an epoch", extra=whose)
        return 200, {"signed_by": certificate.signed_by, "certificate": certificate.signature.hex()}


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the body ended early")
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            raise HTTPException(413, f"the body is longer than {BODY_BYTES_MAX} bytes")
        if not message.get("more_body", False):
            return body


def _violations(error: ValidationError) -> list[Violation]:
    found: list[Violation] = []
    for e in error.errors(include_input=False, include_context=False, include_url=False):
        field = ".".join(str(part) for part in e["loc"])
        found.append(
            Violation(e["type"], e["msg"], field, _REMEDIES.get(field, f"send a JSON object with {', '.join(EpochRequest.model_fields)}"))
        )
    return found


def main() -> int:
    start_logging("signer")
    settings = Settings()
    mint_keys(settings, ["market"])
    try:
        market_key, believed = signing_key(settings, "market"), public_keys(settings, "market")
    except KeyMissing as e:
        logger.error("the signer does not start: %s", e)
        return 2
    if market_key.key_id not in believed:
        logger.error("the signer does not start: its key is none of MODELMARKET_MARKET_PUBLIC_KEYS, nobody would believe what it signs")
        return 2
    password = signer_password_or_fresh(settings)
    if secret_of(f"Bearer {password}".encode()) != password.encode():
        logger.error("the signer does not start: MODELMARKET_SIGNER_PASSWORD must be 1 to 200 visible ASCII characters without spaces")
        return 2
    make_server(make_signer(market_key, password), settings.host, settings.signer_port, lifespan="off").run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
