"""What every route of the query API is given: its parts, who calls, and parameters that are read alike everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from access.codes import PREFIX, Refusal, keys_stale
from access.principal import Principal
from events.process.clock import now_us
from events.process.openapi import problems
from projections.catalog.queries import Catalog
from projections.ingest.clickhouse import ClickHouse
from projections.query_api.callers import require
from projections.query_api.instants import NotAnInstant, instant_of
from projections.query_api.keys_from_log import KeysFromLog
from projections.query_api.problems import access_problem, invalid

Text = Annotated[str, Query(max_length=200)]
TenantFilter = Annotated[str, Query(max_length=100, description="Another tenant's; for admins only.")]
Instant = Annotated[str, Query(max_length=40, description="ISO 8601 or microseconds since 1970 UTC; now if empty.")]


class Queries:
    """What the endpoints need; made once by `main`, or by a test with its own parts."""

    def __init__(
        self,
        clickhouse: ClickHouse,
        accounts: KeysFromLog,
        age_s: Callable[[], float],
        caught_up: Callable[[], bool],
        staleness_s_max: float,
    ) -> None:
        self.clickhouse, self.accounts = clickhouse, accounts
        self.age_s, self.caught_up, self.staleness_s_max = age_s, caught_up, staleness_s_max
        self.catalog = Catalog(clickhouse)

    def caller(self, authorization: bytes) -> Principal | Refusal:
        """K5: a process that cannot know whether a key was revoked refuses every caller."""
        if not self.caught_up() or self.age_s() > self.staleness_s_max:
            return keys_stale(self.staleness_s_max)
        return self.accounts.keys.authenticate(authorization, now_us())


_bearer = HTTPBearer(auto_error=False, description=f"An API key: `{PREFIX}…`")


async def _queries(request: Request) -> Queries:
    return request.app.state.queries  # these are coroutines: what asks nobody needs no thread


async def _caller(request: Request, _shown_in_docs: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> Principal:
    queries: Queries = request.app.state.queries
    found = queries.caller(request.headers.get("authorization", "").encode("latin-1"))
    if isinstance(found, Refusal):
        raise access_problem(found)
    return found


async def _reader(caller: Annotated[Principal, Depends(_caller)]) -> Principal:
    return require(caller, "read")


async def _admin(caller: Annotated[Principal, Depends(_caller)]) -> Principal:
    return require(caller, "admin")


ASKED = problems(401, 403, 429, 503)
"""Of every route that asks who calls."""
Parts = Annotated[Queries, Depends(_queries)]
Known = Annotated[Principal, Depends(_caller)]
MayRead = Annotated[Principal, Depends(_reader)]
Admin = Annotated[Principal, Depends(_admin)]


def instant(text: str, field: str, default: int) -> int:
    """µs UTC of a parameter; `default` where it is empty. Raises Problem (422)."""
    try:
        return instant_of(text) if text else default
    except NotAnInstant as e:
        raise invalid("instant_malformed", str(e), field, "write ISO 8601 such as 2026-11-20T09:00:00Z, or microseconds since 1970") from e
