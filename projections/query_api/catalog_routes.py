"""Routes of the catalog: models as they were at any instant, and what happened to one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from access.codes import MODEL_FOREIGN
from access.principal import Principal
from events.process.openapi import problems
from events.process.problem import Violation
from projections.catalog.queries import END_OF_TIME, PAGE_MAX, Wanted, public
from projections.query_api.answers import CatalogPage, Model, ModelHistory
from projections.query_api.problems import Problem, access_problem
from projections.query_api.request_context import ASKED, Instant, Known, Parts, Text, instant

router = APIRouter(tags=["catalog"])


@router.get("/v1/catalog", response_model=CatalogPage, responses=ASKED)
def catalog(
    parts: Parts,
    caller: Known,
    as_of: Instant = "",
    text: Text = "",
    domain: Text = "",
    task: Text = "",
    scenario: Text = "",
    tag: Text = "",
    tenant: Annotated[str, Query(max_length=100, description="Only this owner's models.")] = "",
    retired: bool = True,
    after: Text = "",
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
) -> Any:
    """Models as they were at an instant, in the order of their names; `next` goes into `after` for the next page."""
    at = instant(as_of, "as_of", END_OF_TIME)
    wanted = Wanted(at, text, domain, task, scenario, tag, tenant, retired, after, limit)
    models, following = parts.catalog.page(wanted)
    return {"models": [_shown(caller, m) for m in models], "next": following, "as_of": None if at == END_OF_TIME else at}


@router.get("/v1/catalog/{model}", response_model=Model, responses=ASKED | problems(404))
def model(parts: Parts, caller: Known, model: str, as_of: Instant = "") -> Any:
    """One model with its versions, reviews and deployment as they were at an instant."""
    found = parts.catalog.model(model, instant(as_of, "as_of", END_OF_TIME))
    if found is None:
        raise Problem(404, Violation("model_unknown", "there was no model of this name then", "model", "look it up in /v1/catalog"))
    return _shown(caller, found)


@router.get("/v1/catalog/{model}/history", response_model=ModelHistory, responses=ASKED)
def history(parts: Parts, caller: Known, model: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Any:
    """What happened to a model, newest first, each fact with its place on the log. For its owner and reviewers."""
    found = parts.catalog.model(model)
    if found is not None and not caller.sees(found["tenant"]):
        raise access_problem(MODEL_FOREIGN)
    return {"model": model, "facts": parts.catalog.history(model, limit)}


def _shown(caller: Principal, model: dict[str, Any]) -> dict[str, Any]:
    return model if caller.sees(model["tenant"]) else public(model)
