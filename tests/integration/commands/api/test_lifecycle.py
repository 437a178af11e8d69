"""The whole lifecycle of a model over HTTP, and the document that lists every command."""

from __future__ import annotations

from typing import Any

import httpx

from events.log.client import Reader
from events.log.schemas import open_codec
from tests.support.decided_log import check_complete
from tests.support.polling import eventually, health
from tests.support.steps.command_side import (
    CommandSide,
    TenantKeys,
    model_file,
    problem,
    registration,
)


def test_the_whole_lifecycle_of_a_model_is_on_the_log_in_the_order_of_the_answers(side: CommandSide, acme: TenantKeys) -> None:
    http, model = side.http, acme.register()
    acme.approve(model, "1.0.0", model_file(1))
    acme.approve(model, "1.1.0", model_file(2))
    decided: list[dict[str, Any]] = []
    for method, path, body in (
        ("POST", "deployments", {"version": "1.0.0"}),
        ("POST", "rollouts", {"version": "1.1.0", "weight_percent": 20}),
        ("POST", "rollouts/advance", {"weight_percent": 50}),
        ("POST", "promote", None),
        ("POST", "rollback", {"reason": "slow"}),
        ("DELETE", "deployments/1.1.0", None),
        ("POST", "retire", {"reason": "old", "successor": "model-vision-lab-next"}),
    ):
        answer = http(method, f"/v1/models/{model}/{path}", acme.owner, json=body, headers={"X-Correlation-Id": "story"})
        assert answer.status_code in (200, 201), answer.text
        assert answer.headers["X-Correlation-Id"] == "story"
        decided += answer.json()["facts"]
        assert answer.headers["etag"] == f'"{decided[-1]["version"]}"'
    names = [
        "VersionDeployed",
        "RolloutStarted",
        "RolloutAdvanced",
        "RolloutPromoted",
        "RolledBack",
        "VersionUndeployed",
        "ModelRetired",
        "VersionUndeployed",
    ]
    assert [f["name"] for f in decided] == names
    eventually(lambda: (found := health(side.settings.relay_health_port)) and found["position"] >= decided[-1]["position"], "relayed")
    records = check_complete(side.settings).records
    reader = Reader(side.settings, "oracle")
    codec, _ = open_codec(side.settings, reader)
    reader.close()
    for fact in decided:
        record = records[fact["position"]]
        name, body = codec.decode(record.value)
        assert (name, body["event_id"], body["version"], body["correlation_id"]) == (
            fact["name"],
            fact["event_id"],
            fact["version"],
            "story",
        )
        assert record.key == model.encode()
        assert record.headers["ce_type"] == name.encode()
    problem(http("POST", f"/v1/models/{model}/deployments", acme.owner, json={"version": "1.0.0"}), 410, "model_retired")
    problem(http("POST", "/v1/models", acme.owner, json=registration(model.rsplit("-", 1)[1])), 409, "name_taken")


def test_the_documentation_lists_every_command(side: CommandSide) -> None:
    spec = httpx.get(f"{side.settings.commands}/openapi.json", timeout=60).json()
    assert "/v1/models/{model}/rollouts" in spec["paths"]
    assert spec["components"]["securitySchemes"]
    assert httpx.get(f"{side.settings.commands}/docs", timeout=60).status_code == 200
