"""Before the key is known nothing of a request's body is read or parsed; then its tenant has a share of the requests, and the body a time.

ASGI middleware without a framework. Each listener says how a key is known; `access` has the refusals.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

import orjson
from starlette.exceptions import HTTPException

from events.process.problem import PROBLEM_JSON, Violation, problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

BODY_IDLE_S_MAX, BODY_S_MAX = 10.0, 60.0
"""Between two pieces of a body, and for all of it. An upload, which is long, has its own bound in place of the second."""
TOO_MANY_S = 1.0
"""After so long a tenant with too many requests is told: so a flood of refused requests costs one per connection and second."""
OPEN = ("/healthz", "/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect")
OPEN_BELOW = "/static-offline-docs/"
"""Paths that need no key: health, and the pages of the documentation."""


class NotAdmitted(Exception):
    """This Authorization header opens nothing."""

    def __init__(self, status: int, violation: Violation, headers: Mapping[str, str]) -> None:
        super().__init__(violation.message)
        self.status, self.violation, self.headers = status, violation, headers


class Caller(Protocol):
    @property
    def tenant(self) -> str: ...


Identify = Callable[[bytes], Awaitable[Caller]]
"""Who sends this Authorization header. Raises NotAdmitted."""
CALLER = "modelmarket.caller"
"""In the scope of an admitted request: who sends it, as `Identify` said."""


class Admission:
    """Around an application. `limit_s` of a path is how long its body may take."""

    def __init__(
        self,
        app: App,
        identify: Identify,
        tenant_requests_max: int,
        limit_s: Callable[[str], float] = lambda path: BODY_S_MAX,
        idle_s: float = BODY_IDLE_S_MAX,
        too_many_s: float = TOO_MANY_S,
    ) -> None:
        self._app, self._identify, self._limit_s, self._idle_s, self._too_many_s = app, identify, limit_s, idle_s, too_many_s
        self._tenant_requests_max = tenant_requests_max
        self._requests: Counter[str] = Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or scope["path"].startswith(OPEN_BELOW):
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._identify(dict(scope["headers"]).get(b"authorization", b""))
            if self._requests[caller.tenant] >= self._tenant_requests_max:
                await asyncio.sleep(self._too_many_s)
                raise too_many_requests(f"{self._tenant_requests_max} requests of your tenant are under way")
        except NotAdmitted as e:
            await refuse(send, e, body_unread=announces_body(scope))
            return
        scope[CALLER] = caller
        await self._admitted(caller.tenant, scope, receive, send)

    async def _admitted(self, tenant: str, scope: Message, receive: Receive, send: Send) -> None:
        self._requests[tenant] += 1
        try:
            await self._app(scope, self._in_time(receive, self._limit_s(scope["path"])), send)
        finally:
            self._requests[tenant] -= 1
            if not self._requests[tenant]:
                del self._requests[tenant]

    def _in_time(self, receive: Receive, limit_s: float) -> Receive:
        ends, whole = asyncio.get_running_loop().time() + limit_s, False

        async def received() -> Message:
            nonlocal whole
            if whole:  # from here on it waits for the caller to disconnect
                return await receive()
            try:
                async with asyncio.timeout(min(self._idle_s, ends - asyncio.get_running_loop().time())):
                    message = await receive()
            except TimeoutError:
                detail = f"the body did not come within {limit_s:.0f} s, or nothing of it for {self._idle_s:.0f} s"
                raise HTTPException(408, detail, {"Connection": "close"}) from None
            whole = not message.get("more_body", False)
            return message

        return received


def too_many_requests(message: str) -> NotAdmitted:
    return NotAdmitted(429, Violation("too_many_requests", message, "", "wait for their answers"), {"Retry-After": "1"})


def announces_body(scope: Message) -> bool:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


async def refuse(send: Send, e: NotAdmitted, *, body_unread: bool) -> None:
    """A connection whose body stays unread ends."""
    body = orjson.dumps(problem(e.status, [e.violation]))
    fixed = {"content-type": PROBLEM_JSON, "content-length": str(len(body)), **({"connection": "close"} if body_unread else {})}
    sent = [(name.lower().encode(), value.encode("latin-1")) for name, value in {**e.headers, **fixed}.items()]
    await send({"type": "http.response.start", "status": e.status, "headers": sent})
    await send({"type": "http.response.body", "body": body})
