"""A large body is read beside the event loop, and says the same as one that is read at once."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import orjson
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from commands.bills.requests import CompleteBillRequest
from commands.bills.routes import BillRoute
from commands.http.piecewise import ELEMENT_CHARS_MAX, read_object
from commands.http.problem_answers import problem_answer, violations_of

LINE = {"model": "model-vision-acme-digits", "model_version": "1.0.0", "provider": "acme", "meter": "calls"}
NUMBERS = {"book_version": 1, "amount_per_micros": 7, "per_units": 1, "quantity": 3, "amount_micros": 21}
JSON = {"content-type": "application/json"}
WAIT_SHARE_MAX = 0.3
"""Longest wait of another request, as a share of what reading the bill takes, in processor time, which other processes do not change: parsing or
validating it in one call takes more."""


def bill(count: int, /, **more: Any) -> dict[str, Any]:
    body = {"number": 1, "cut_event_id": "c", "total_micros": 21 * count, "facts": {}, "producers_open": 0, "excluded": [1, 2]}
    return {**body, "digest": "0" * 64, "lines": [{**LINE, **NUMBERS}] * count, **more}


class Api:
    """The route of bills, and another one."""

    def __init__(self) -> None:
        self.read: list[CompleteBillRequest] = []
        self.app = FastAPI()
        routes = APIRouter(route_class=BillRoute)
        routes.add_api_route("/complete", self.complete, methods=["POST"])
        self.app.include_router(routes)
        self.app.add_api_route("/ping", self.ping)
        self.app.add_exception_handler(RequestValidationError, self.malformed)

    async def complete(self, body: CompleteBillRequest, request: Request) -> int:
        self.read.append(body)
        return len(body.lines)

    async def malformed(self, _: Request, e: Exception) -> Response:
        assert isinstance(e, RequestValidationError)
        return problem_answer(422, violations_of(e.errors()))

    async def ping(self) -> None:
        pass

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://t")


@pytest.fixture
def own_objects_only() -> Iterator[None]:
    """Python's collector stops all threads for as long as it looks at every object: those of a thousand other tests are left out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("own_objects_only")
def test_others_are_answered_while_the_largest_bill_is_read() -> None:
    body = orjson.dumps(bill(100_000))
    assert len(body) > 15_000_000

    async def whole(came: asyncio.Event) -> AsyncGenerator[bytes]:
        yield body
        came.set()

    async def run() -> tuple[Api, list[float]]:
        api, came, answered = Api(), asyncio.Event(), list[float]()
        async with api.client() as client:
            posted = asyncio.create_task(client.post("/complete", content=whole(came), headers=JSON))
            await came.wait()
            while not api.read and not posted.done():
                answered.append(time.process_time())
                await client.get("/ping")
                await asyncio.sleep(0.002)
            answered.append(time.process_time())
            answer = await posted
        assert (answer.status_code, answer.json()) == (200, 100_000), answer.text
        return api, answered

    api, answered = asyncio.run(run())
    waits = [after - before for before, after in itertools.pairwise(answered)]
    assert max(waits) <= WAIT_SHARE_MAX * sum(waits)
    assert api.read[0].lines[99_999].amount_micros == 21


@pytest.mark.parametrize(
    ("body", "status", "fields"),
    [
        (b'{"lines": [{}', 422, ["13"]),
        (b"[]", 422, ["0"]),
        (b"", 422, [""]),
        (json.dumps(bill(0)).encode(), 200, []),
        (json.dumps(bill(3, lines=[])).encode(), 200, []),
        (json.dumps(bill(3, lines={})).encode(), 422, ["lines"]),
        (json.dumps(bill(3, cut_event_id="c" * ELEMENT_CHARS_MAX)).encode(), 422, ["30"]),
        (
            json.dumps(bill(0, lines=[{**LINE, **NUMBERS}] * 1234 + [{**LINE, **NUMBERS, "quantity": "x"}] * 9)).encode(),
            422,
            [f"lines.{n}.quantity" for n in range(1234, 1243)],
        ),
        (json.dumps(bill(1, total="1")).encode(), 422, ["total"]),
    ],
)
def test_a_fault_is_named_where_it_is(body: bytes, status: int, fields: list[str]) -> None:
    async def run() -> httpx.Response:
        async with Api().client() as client:
            return await client.post("/complete", content=body, headers=JSON)

    answer = asyncio.run(run())
    assert answer.status_code == status, answer.text
    if status == 422:
        assert [violation["field"] for violation in answer.json()["violations"]] == fields


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda of: st.lists(of, max_size=4) | st.dictionaries(st.text(max_size=5), of, max_size=4),
    max_leaves=12,
)
_NUMBERS: TypeAdapter[Any] = TypeAdapter(list[int])


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=8), _VALUES, max_size=6), st.sampled_from([None, 0, 3]), st.booleans())
def test_an_object_is_read_as_the_parser_reads_it(value: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    try:
        body = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return
    assert read_object(b" \n" + body + b"\t", {}) == json.loads(body)


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",: 1a\\\n', max_size=40).map(str.encode))
def test_what_the_parser_refuses_is_refused(body: bytes) -> None:
    def outcome(read: Any) -> Iterator[object]:
        try:
            value = read(body)
        except ValueError:
            return
        if isinstance(value, dict):
            yield value

    assert list(outcome(lambda b: read_object(b, {}))) == list(outcome(json.loads))


def test_a_list_is_validated_up_to_its_first_fault() -> None:
    read = read_object(json.dumps({"n": ["1", 2, *[3] * 1000, "x", 5], "m": ["x"]}).encode(), {"n": _NUMBERS})
    assert read["n"][:3] == [1, 2, 3] and read["n"][1000:] == [3, 3, "x", 5] and read["m"] == ["x"]
