"""The upload of a model file: PUT the bytes under the digest they must have."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
from pathlib import Path

import orjson
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from commands.artifacts.intake import ArtifactIntake, IntakeBusy
from commands.http.command_app import Call, CommandApp, Refused
from commands.http.problems import busy_response, problem_response, rejected_response
from commands.processor.rejection import Rejected, forbidden, invalid
from commands.tenants.routes import existing_tenant
from events.facts.fact import TenantId
from events.process.problem import Violation

_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
UPLOADS_MAX = 8
"""Uploads under way at once: bounds the disk they take before they are judged."""
UPLOAD_S_MAX = 900.0
"""Longest an upload may take: else eight callers who send nothing keep everybody else from uploading."""


def artifact_routes(app: CommandApp, intake: ArtifactIntake) -> APIRouter:
    routes = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])
    slots = asyncio.Semaphore(UPLOADS_MAX)

    @routes.put("/{digest}", status_code=201)
    async def upload(digest: str, request: Request, tenant: str | None = None) -> Response:
        """The raw file as body. 201 with its inputs and outputs; the same file again changes nothing."""
        call = await run_in_threadpool(app.enter, request, "models")
        owner = await run_in_threadpool(_owner, app, call, tenant)
        if not _DIGEST.match(digest):
            wrong = invalid("digest_malformed", "the path names no digest", "digest", "PUT /v1/artifacts/sha256:<64 hexadecimal digits>")
            return rejected_response(wrong, call.headers)
        async with slots:
            return await _take(app, intake, call, owner, digest, request)

    return routes


async def _take(app: CommandApp, intake: ArtifactIntake, call: Call, tenant: TenantId, digest: str, request: Request) -> Response:
    limit = app.settings.artifact_bytes_max
    handle, name = tempfile.mkstemp(dir=intake.folder, suffix=".onnx")
    try:
        with os.fdopen(handle, "wb") as file:
            size, found = 0, hashlib.sha256()
            try:
                async with asyncio.timeout(UPLOAD_S_MAX):
                    async for chunk in request.stream():
                        size += len(chunk)
                        if size > limit:
                            remedy = "make the model smaller, or raise artifact_bytes_max"
                            violation = Violation("artifact_too_large", f"more than {limit} bytes", "", remedy)
                            return problem_response(413, [violation], {**call.headers, "Connection": "close"})
                        found.update(chunk)
                        file.write(chunk)
            except TimeoutError:
                violation = Violation("upload_slow", f"the file did not come within {UPLOAD_S_MAX:.0f} s", "", "send it faster")
                return problem_response(408, [violation], {**call.headers, "Connection": "close"})
        if f"sha256:{found.hexdigest()}" != digest:
            message = f"the {size} bytes that came hash to sha256:{found.hexdigest()}"
            return rejected_response(
                invalid("digest_mismatch", message, "digest", "send the file whole, under its own digest"), call.headers
            )
        try:
            signature = await run_in_threadpool(intake.take, tenant, digest, Path(name))
        except IntakeBusy as e:
            return busy_response("inspection_busy", str(e), call.headers)
        if isinstance(signature, Rejected):
            return rejected_response(signature, call.headers)
        said = {
            "artifact": digest,
            "bytes": size,
            "tenant": tenant,
            "inputs": _tensors(signature.inputs),
            "outputs": _tensors(signature.outputs),
        }
        return Response(orjson.dumps(said), 201, call.headers, "application/json")
    except ClientDisconnect:
        return problem_response(400, [Violation("upload_broken", "the upload ended early", "", "send it again")], call.headers)
    finally:
        os.unlink(name)


def _tensors(found: tuple[tuple[str, str, tuple[int, ...]], ...]) -> list[dict[str, object]]:
    return [{"name": name, "datatype": datatype, "shape": list(shape)} for name, datatype, shape in found]


def _owner(app: CommandApp, call: Call, asked: str | None) -> TenantId:
    tenant = TenantId(asked or call.principal.tenant)
    if not call.principal.acts_for(tenant):
        raise Refused(rejected_response(forbidden("foreign_tenant", "this key acts for its own tenant only", "tenant", "leave it out")))
    existing_tenant(app, tenant)
    return tenant
