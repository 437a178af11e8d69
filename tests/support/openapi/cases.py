"""Runs schemathesis against an API in this process: cases made from its OpenAPI document, and every check of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zoneinfo import available_timezones

import orjson
import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st
from schemathesis.config import ChecksConfig, GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.config._checks import NegativeDataRejectionConfig, PositiveDataAcceptanceConfig  # exported nowhere else
from schemathesis.engine import events, from_schema

schemathesis.openapi.format("timezone", st.sampled_from(sorted(available_timezones())))

REFUSED_BY_A_RULE = frozenset(
    {
        "artifact_missing",
        "artifact_not_onnx",
        "currency_differs",
        "description_differs",
        "digest_mismatch",
        "dimension_unknown",
        "effective_in_past",
        "effective_too_late",
        "expires_in_past",
        "idempotency_key_reused",
        "instant_malformed",
        "meter_not_measured",
        "name_like_version",
        "parent_unknown",
        "period_malformed",
        "price_too_high",
        "price_twice",
        "record_twice",
        "replicas_reversed",
        "set_too_wide",
        "span_too_long",
        "tenant_missing",
        "tensor_twice",
        "timezone_unknown",
    }
)
"""422 for a request that its schema allows: a rule that no JSON schema can state."""


def findings(api: FastAPI, key: str, known: Mapping[str, str], *, examples: int, seed: int) -> tuple[int, list[str]]:
    """How many cases ran, and what was found. `known` are path parameters of things that are there: half of the cases are about them."""
    checks = ChecksConfig(
        positive_data_acceptance=PositiveDataAcceptanceConfig(
            expected_statuses=["2xx", "401", "403", "404", "409", "410", "412", "413", "429"]
        ),
        negative_data_rejection=NegativeDataRejectionConfig(
            expected_statuses=["400", "401", "403", "404", "405", "409", "410", "412", "413", "422", "429"]
        ),
    )
    project = ProjectConfig(
        headers={"Authorization": f"Bearer {key}"},
        continue_on_failure=True,
        checks=checks,
        generation=GenerationConfig(max_examples=examples, database="none"),
    )
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", _without_end(api), config=SchemathesisConfig(seed=seed, projects=ProjectsConfig(default=project))
    )

    @schema.hook
    def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:  # pyright: ignore[reportUnusedFunction]
        if not path_parameters or len(str(path_parameters)) % 2:
            return path_parameters
        return {name: known.get(name, value) for name, value in path_parameters.items()}

    cases, found = 0, dict[str, str]()
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                cases += len(event.recorder.cases)
                found |= _failures(event)
            case events.NonFatalError() | events.FatalError():
                found[repr(event)] = str(getattr(event, "info", "") or getattr(event, "exception", ""))
            case _:
                pass
    return cases, [f"{what}\n{where}" for what, where in found.items()]


def _without_end(api: FastAPI) -> Any:
    """schemathesis begins and ends the application that it is given; the test goes on with it."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await api(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return application


def _failures(event: events.ScenarioFinished) -> dict[str, str]:
    """One of each kind and operation."""
    found = dict[str, str]()
    for case, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is None:
                continue
            failure, response = check.failure_info.failure, event.recorder.interactions[case].response
            code = _code(response.content) if response is not None else ""
            if type(failure).__name__ == "RejectedPositiveData" and code in REFUSED_BY_A_RULE:
                continue
            what = f"{event.recorder.label} {type(failure).__name__} {code}: {failure.message[:300]}"
            sample, answer = check.failure_info.code_sample, response and (response.status_code, response.content[:300])
            found[what] = f"{sample[:400]} … {sample[-200:]} -> {answer}"
    return found


def _code(content: bytes) -> str:
    try:
        answer = orjson.loads(content)
    except ValueError:
        return ""
    return str(answer.get("code", "")) if isinstance(answer, dict) else ""
