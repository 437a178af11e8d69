"""The baseline of `bench.invoke`: digits as Ray Serve's documentation would serve them, one handle call per request."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse

from events.facts.fact import TenantId
from events.process.artifacts import Artifacts
from events.process.settings import Settings

PLAIN_APP = "plain"


def plain_app(tenant: str, artifact: str) -> dict[str, Any]:
    """The application's entry in Serve's configuration."""
    return {
        "name": PLAIN_APP,
        "route_prefix": "/plain",
        "import_path": "bench.baselines.plain:build",
        "args": {"tenant": tenant, "artifact": artifact},
    }


class PlainModel:
    def __init__(self, args: dict[str, str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        model = Artifacts(Settings()).read(TenantId(args["tenant"]), args["artifact"])
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    async def predict(self, pixels: list[float]) -> dict[str, Any]:
        label, scores = self._session.run(["label", "scores"], {"pixels": np.array(pixels, np.float32).reshape(1, 64)})
        return {"label": int(np.asarray(label)[0]), "scores": np.asarray(scores)[0].tolist()}


class PlainIngress:
    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._model = model

    async def __call__(self, request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse(await self._model.predict.remote(body["inputs"][0]["data"]))  # type: ignore[attr-defined]


def build(args: dict[str, str]) -> serve.Application:
    model: Any = serve.deployment(PlainModel)
    ingress: Any = serve.deployment(PlainIngress)
    small = {"num_cpus": 0.1}
    bound = model.options(ray_actor_options=small, max_ongoing_requests=1000).bind(args)
    return ingress.options(ray_actor_options=small, max_ongoing_requests=1000).bind(bound)
