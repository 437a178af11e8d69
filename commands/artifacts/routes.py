"""The upload of a model file: PUT the bytes under the digest they must have."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from commands.artifacts.inspection import Signature
from commands.artifacts.intake import ArtifactIntake, InspectionBusy
from commands.http.answers import JSON
from commands.http.command_app import AuthorizedCall, CommandApp
from commands.http.problem_answers import HttpProblem, problem_answer, rejected_answer, unavailable_answer
from commands.processor.rejection import Rejected, invalid
from commands.tenants.lookup import acting_tenant
from events.facts.fact import TenantId
from events.process.openapi import Responses, problems
from events.process.problem import Violation

_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
UPLOADS_MAX = 8
"""Uploads under way at once: bounds the disk they take before they are inspected."""
TENANT_UPLOADS_MAX = 3
UPLOAD_S_MAX = 900.0
"""Longest an upload may take. One of which nothing comes for seconds is ended before (`events/process/http_admission.py`)."""
RATE_S, RATE_BYTES = 30.0, 30 * (64 << 10)
"""In each so many seconds so many bytes must come, 64 KiB a second: a byte now and then would hold a slot for all of `UPLOAD_S_MAX`, and three
tenants all slots."""

DigestPath = Annotated[str, PathParameter(json_schema_extra={"pattern": _DIGEST.pattern})]


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class UploadedArtifact(BaseModel):
    """A file that was taken in, with the inputs and outputs that it really has."""

    artifact: str
    bytes: int
    tenant: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class Artifacts:
    """Model files, by their digest."""

    def __init__(self, app: CommandApp, intake: ArtifactIntake) -> None:
        self._app, self._intake = app, intake
        self._uploads: Counter[str] = Counter()

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])
        body = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
        responses: Responses = {201: {"model": UploadedArtifact}} | problems(404, 408, 413)
        routes.put("/{digest}", status_code=201, responses=responses, openapi_extra={"requestBody": body})(self.upload)
        return routes

    async def upload(self, digest: DigestPath, request: Request, tenant: str | None = None) -> Response:
        """The raw file as body. 201 with its inputs and outputs; the same file again changes nothing."""
        call = await run_in_threadpool(self._app.authorize, request, "models")
        owner = await run_in_threadpool(acting_tenant, self._app, call, tenant)
        if not _DIGEST.match(digest):
            remedy = "PUT /v1/artifacts/sha256:<64 hexadecimal digits>"
            return rejected_answer(invalid("digest_malformed", "the path names no digest", "digest", remedy), call.headers)
        with self._slot(call):
            handle, name = tempfile.mkstemp(dir=self._intake.folder, suffix=".onnx")
            try:
                with os.fdopen(handle, "wb") as file:
                    size = await _receive(request, call, file, digest, self._app.settings.artifact_bytes_max)
                return await self._take(call, owner, digest, size, Path(name))
            finally:
                os.unlink(name)

    @contextmanager
    def _slot(self, call: AuthorizedCall) -> Generator[None]:
        """One of the uploads under way. Raises HttpProblem."""
        tenant, headers = call.principal.tenant, {**call.headers, "Connection": "close"}
        if self._uploads.total() >= UPLOADS_MAX:
            raise HttpProblem(unavailable_answer("uploads_busy", f"{UPLOADS_MAX} files are coming in", "try again", 5, headers))
        if self._uploads[tenant] >= TENANT_UPLOADS_MAX:
            message = f"{TENANT_UPLOADS_MAX} files of your tenant are coming in"
            raise _failed(429, call, Violation("too_many_uploads", message, "", "send them one after another"), {"Retry-After": "5"})
        self._uploads[tenant] += 1
        try:
            yield
        finally:
            self._uploads[tenant] -= 1

    async def _take(self, call: AuthorizedCall, tenant: TenantId, digest: str, size: int, file: Path) -> Response:
        try:
            signature = await run_in_threadpool(self._intake.take, tenant, digest, file)
        except InspectionBusy as e:
            return unavailable_answer("inspection_busy", str(e), "try again in a moment", 2, call.headers)
        if isinstance(signature, Rejected):
            return rejected_answer(signature, call.headers)
        content = {"artifact": digest, "bytes": size, "tenant": tenant, **_tensors(signature)}
        return Response(orjson.dumps(content), 201, call.headers, JSON)


async def _receive(request: Request, call: AuthorizedCall, file: IO[bytes], digest: str, bytes_max: int) -> int:
    """Writes the body to the file; its size. Raises HttpProblem unless it is the file of that digest, whole, small enough and in time."""
    size, found = 0, hashlib.sha256()
    began, before = time.monotonic(), 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if time.monotonic() - began >= RATE_S:
                if size - before < RATE_BYTES:
                    message = f"{size - before} bytes came in {RATE_S:.0f} s, at least {RATE_BYTES} must"
                    raise _failed(408, call, Violation("upload_too_slow", message, "", "send it over a faster connection"))
                began, before = time.monotonic(), size
            if size > bytes_max:
                remedy = "make the model smaller, or raise artifact_bytes_max"
                raise _failed(413, call, Violation("artifact_too_large", f"more than {bytes_max} bytes", "", remedy))
            found.update(chunk)
            file.write(chunk)
    except ClientDisconnect:
        violation = Violation("upload_broken", "the upload ended early", "", "send it again")
        raise HttpProblem(problem_answer(400, [violation], call.headers)) from None
    if f"sha256:{found.hexdigest()}" != digest:
        message = f"the {size} bytes that came hash to sha256:{found.hexdigest()}"
        mismatch = invalid("digest_mismatch", message, "digest", "send the file whole, under its own digest")
        raise HttpProblem(rejected_answer(mismatch, call.headers))
    return size


def _failed(status: int, call: AuthorizedCall, violation: Violation, headers: Mapping[str, str] | None = None) -> HttpProblem:
    """The rest of the body is not read, so the connection ends."""
    return HttpProblem(problem_answer(status, [violation], {**call.headers, **(headers or {}), "Connection": "close"}))


def _tensors(signature: Signature) -> dict[str, list[dict[str, Any]]]:
    return {
        part: [{"name": name, "datatype": datatype, "shape": list(shape)} for name, datatype, shape in tensors]
        for part, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
