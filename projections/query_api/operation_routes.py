"""Routes for operators: dead letters, producer epochs, and the health of this process."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from events.log.record import Coordinate
from projections.dead_letters.queries import DEAD_LETTERS_MAX, OPEN, STATES, find_dead_letters
from projections.ingest.clickhouse import ClickHouseError, ClickHouseUnavailable
from projections.query_api.answers import Caller, DeadLetterPage, EpochPage, Health
from projections.query_api.request_context import ASKED, Admin, MayRead, Parts
from projections.usage.producer_epochs import epochs

router = APIRouter(tags=["operation"])
After = Annotated[str, Query(pattern="^([a-z-]{1,40}/[0-9]{1,9}/[0-9]{1,18})?$", description="`next` of the page before.")]


@router.get("/v1/dead-letters", response_model=DeadLetterPage, responses=ASKED)
def dead_letters(
    parts: Parts,
    caller: Admin,
    everything: bool = False,
    after: After = "",
    limit: Annotated[int, Query(ge=1, le=DEAD_LETTERS_MAX)] = DEAD_LETTERS_MAX,
) -> Any:
    """Unreadable records, in the order of their coordinates: open ones, or all with what became of them. Their bytes stay on the
    log; `next` goes into `after` for the next page."""
    topic, partition, offset = after.split("/") if after else ("", -1, -1)
    start = Coordinate(topic, int(partition), int(offset))
    page = find_dead_letters(parts.clickhouse, STATES if everything else OPEN, limit=limit, after=start)
    return {"dead_letters": [d.to_json() for d in page], "next": str(page[-1].at) if len(page) == limit else ""}


@router.get("/v1/producers", response_model=EpochPage, responses=ASKED)
def producers(parts: Parts, caller: Admin, everything: bool = False) -> Any:
    """Epochs of producers, newest first: open ones, or all; and when the last fact of each came."""
    return {"epochs": [asdict(e) for e in epochs(parts.clickhouse, only_open=not everything)]}


@router.get("/v1/caller", response_model=Caller, responses=ASKED)
def caller(caller: MayRead) -> Any:
    """Whose key this is. The ClickHouse endpoint asks it when an analyst signs in."""
    return {"tenant": caller.tenant, "user": caller.user, "key_id": caller.key_id, "scopes": sorted(caller.scopes)}


@router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
def healthz(parts: Parts, response: Response) -> Any:
    """Ready when the keys are folded and ClickHouse answers."""
    age, detail = parts.age_s(), ""
    if not parts.caught_up():
        detail = "folding the keys"
    elif age > parts.staleness_s_max:
        detail = "the newest heartbeat is old: is the relay at work?"
    try:
        parts.clickhouse.value("SELECT 1")
    except (ClickHouseUnavailable, ClickHouseError) as e:
        detail = f"ClickHouse does not answer: {str(e)[:200]}"
    response.status_code = 503 if detail else 200
    health = {"status": "starting" if detail else "ready", "lag": None, "detail": detail}
    return {**health, "age_s": round(age, 3) if age < 1e9 else None}
