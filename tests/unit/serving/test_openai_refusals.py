"""A refused call is told to whoever uses OpenAI's own client, in the one place where that client looks."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx2
import openai
import orjson
import pytest

from events.process.settings import Settings
from serving.gateway.asgi import Gateway
from serving.gateway.state import GatewayState
from serving.http import refusal_answer
from serving.protocols.openai.operations import error_object
from serving.refused import Refused

NO_REPLICAS = cast("Any", None)
"""Nothing here is executed."""


def refused_by_gateway(path: str) -> openai.APIStatusError:
    """What the client raises for a GET of a gateway that has no address like that, or has read no keys yet."""
    gateway = Gateway(GatewayState(Settings(), NO_REPLICAS))

    async def call() -> None:
        transport = httpx2.ASGITransport(app=cast("Any", gateway))
        async with httpx2.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(api_key="mm_key", base_url="http://gateway/v1", http_client=http, max_retries=0)
            await client.get(path, cast_to=object)

    with pytest.raises(openai.APIStatusError) as raised:
        asyncio.run(asyncio.wait_for(call(), 20))
    return raised.value


def test_the_openai_client_shows_our_message_and_not_only_the_status() -> None:
    nowhere = refused_by_gateway("/chat/completions")
    assert isinstance(nowhere, openai.NotFoundError)
    assert str(nowhere) == (
        "Error code: 404 - nothing is at /v1/chat/completions; what to do: GET /v2 describes this server; GET /v1/models lists models"
    )
    assert (nowhere.code, nowhere.type, nowhere.param) == ("not_found", "invalid_request_error", None)
    starting = refused_by_gateway("/models")
    assert isinstance(starting, openai.InternalServerError)
    assert (starting.status_code, starting.type) == (503, "server_error")
    assert str(starting).startswith("Error code: 503 - ") and "what to do: " in str(starting)


def test_the_error_object_says_what_is_wrong_where_and_what_to_do() -> None:
    refused = Refused(400, "shape_wrong", "it has 10 columns", "inputs[0].shape", "send 64 of them")
    assert error_object(refused) == {
        "message": "it has 10 columns; what to do: send 64 of them",
        "type": "invalid_request_error",
        "code": "shape_wrong",
        "param": "inputs[0].shape",
    }
    kinds = {status: error_object(Refused(status, "c", "m"))["type"] for status in (401, 403, 404, 429, 500, 503)}
    assert list(kinds.values()) == [
        *("authentication_error", "permission_error", "invalid_request_error", "rate_limit_error"),
        *("server_error", "server_error"),
    ]


def test_it_is_a_problem_document_all_the_same_and_other_protocols_get_the_message() -> None:
    refused = Refused(404, "model_unknown", "there is no such model", "model", "see the list")
    document = orjson.loads(refusal_answer(refused, error_object(refused)).body)
    assert (document["code"], document["remedy"], document["status"]) == ("model_unknown", "see the list", 404)
    assert document["error"]["code"] == "model_unknown"
    assert orjson.loads(refusal_answer(refused).body)["error"] == "there is no such model"
