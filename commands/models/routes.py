"""The resource of models: their versions, reviews and retirement."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from commands.artifacts.intake import ArtifactIntake, InspectionBusy
from commands.http.answers import state_answer
from commands.http.bounds import ModelPath, TextPath
from commands.http.command_app import AuthorizedCall, CommandApp
from commands.http.operations import command, reading
from commands.http.problem_answers import HttpProblem, rejected_answer, unavailable_answer
from commands.models.aggregate import MODEL
from commands.models.answers import ModelAnswer, Registered, WholeModel
from commands.models.decide import AddVersion, RegisterModel, RetireModel, ReviewVersion, SubmitVersion, decide
from commands.models.guards import active_model
from commands.models.requests import AddVersionRequest, RegisterModelRequest, RetireRequest, ReviewRequest
from commands.models.visibility import model_answer, owned, parent_known, shown, whole_model
from commands.processor.command_handler import CommandHandler
from commands.processor.rejection import Rejected, invalid
from commands.tenants.lookup import acting_tenant
from events.process.artifacts import ArtifactMissing
from lifecycle.model import ActiveModel, Draft
from lifecycle.state import Lifecycle


class Models:
    """A model, its versions and their reviews."""

    def __init__(self, app: CommandApp, intake: ArtifactIntake) -> None:
        self._app, self._intake = app, intake

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/models", tags=["models"])
        command(routes, "POST", "", Registered, created=True)(self.register)
        reading(routes, "/{model}", WholeModel)(self.read)
        command(routes, "POST", "/{model}/versions", ModelAnswer, created=True, gone=True)(self.add_version)
        command(routes, "POST", "/{model}/versions/{version}/submit", ModelAnswer, gone=True)(self.submit)
        command(routes, "POST", "/{model}/versions/{version}/reviews", ModelAnswer, gone=True)(self.review)
        command(routes, "POST", "/{model}/retire", ModelAnswer, gone=True)(self.retire)
        return routes

    def register(self, body: RegisterModelRequest, request: Request) -> Response:
        """Takes a name for ever and describes the model behind it."""
        call = self._app.authorize(request, "models")
        tenant = acting_tenant(self._app, call, body.tenant)
        return self._app.run(call, REGISTER, body.model, body.command(tenant, call.principal.user), body)

    def read(self, model: ModelPath, request: Request) -> Response:
        """The state that commands are decided on. The ETag is its version."""
        call = self._app.authorize(request, "models", "deploy", "read", "review:business", "review:security")
        state = self._app.aggregates.load(MODEL, model)
        hidden = shown(state, call.principal)
        return state_answer(call.headers, state.version, whole_model(state)) if hidden is None else rejected_answer(hidden, call.headers)

    def add_version(self, model: ModelPath, body: AddVersionRequest, request: Request) -> Response:
        """Adds a draft whose bytes are fixed by digest; the file must be here and be what the description says."""
        call = self._app.authorize(request, "models")
        state = self._app.aggregates.load(MODEL, model)
        active = owned(state, call.principal) or active_model(state.model)
        if isinstance(active, Rejected):
            return rejected_answer(active, call.headers)
        return self._app.run(call, ADD_VERSION, model, self._addition(call, active, body), body)

    def _addition(self, call: AuthorizedCall, model: ActiveModel, body: AddVersionRequest) -> AddVersion:
        """Raises HttpProblem unless the file is there and is what the description says."""
        try:
            size, differs = self._intake.check(model.tenant, body.artifact, body.technical)
        except ArtifactMissing:
            remedy = f"PUT the file to /v1/artifacts/{body.artifact} first"
            differs, size = invalid("artifact_missing", "no such artifact of this tenant", "artifact", remedy), 0
        except InspectionBusy as e:
            raise HttpProblem(unavailable_answer("inspection_busy", str(e), "try again in a moment", 2, call.headers)) from e
        if differs is not None:
            raise HttpProblem(rejected_answer(differs, call.headers))
        known = frozenset(p for p in body.lineage.parents if parent_known(self._app.aggregates, call.principal, p))
        return body.command(size, known)

    def submit(self, model: ModelPath, version: TextPath, request: Request) -> Response:
        """Asks for review. The file is loaded once, so that nobody reviews what cannot run."""
        call = self._app.authorize(request, "models")
        self._require_loadable(call, model, version)
        return self._app.run(call, SUBMIT, model, SubmitVersion(version))

    def _require_loadable(self, call: AuthorizedCall, model: str, version: str) -> None:
        """Raises HttpProblem. What is no draft of the caller's is left to the rule, which says so."""
        state = self._app.aggregates.load(MODEL, model)
        if not isinstance(state.model, ActiveModel) or owned(state, call.principal):
            return
        draft = state.model.versions.get(version)
        if not isinstance(draft, Draft):
            return
        try:
            failed = self._intake.load(state.model.tenant, draft.release.artifact)
        except ArtifactMissing:
            remedy = f"PUT the file to /v1/artifacts/{draft.release.artifact} again"
            failed = invalid("artifact_missing", "the file of this version is gone", "artifact", remedy)
        except InspectionBusy as e:
            raise HttpProblem(unavailable_answer("inspection_busy", str(e), "try again in a moment", 2, call.headers)) from e
        if failed is not None:
            raise HttpProblem(rejected_answer(failed, call.headers))

    def review(self, model: ModelPath, version: TextPath, body: ReviewRequest, request: Request) -> Response:
        """One reviewer's verdict. Business and security are given by two people who did not make the version."""
        call = self._app.authorize(request, "review:business" if body.review == "business" else "review:security")
        return self._app.run(call, REVIEW, model, body.command(version), body)

    def retire(self, model: ModelPath, body: RetireRequest, request: Request) -> Response:
        """No more calls, for ever; what is loaded is unloaded."""
        return self._app.run(self._app.authorize(request, "models"), RETIRE, model, body.command(), body)


def _registered(state: Lifecycle, command: RegisterModel) -> dict[str, Any]:
    return {"model": command.model, "tenant": command.tenant}


REGISTER = CommandHandler[Lifecycle, RegisterModel](MODEL, decide, _registered, created=True)
ADD_VERSION = CommandHandler[Lifecycle, AddVersion](MODEL, decide, model_answer, owned, created=True)
SUBMIT = CommandHandler[Lifecycle, SubmitVersion](MODEL, decide, model_answer, owned)
REVIEW = CommandHandler[Lifecycle, ReviewVersion](MODEL, decide, model_answer)
RETIRE = CommandHandler[Lifecycle, RetireModel](MODEL, decide, model_answer, owned)
