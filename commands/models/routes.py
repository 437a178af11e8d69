"""The resources of a model: versions, reviews, traffic, retirement."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from commands.artifacts.intake import ArtifactIntake, IntakeBusy
from commands.deployments import decide as deployment_decide
from commands.deployments.decide import (
    AdvanceRollout,
    DeploymentCommand,
    DeployVersion,
    PromoteRollout,
    RollBack,
    StartRollout,
    UndeployVersion,
)
from commands.http.bodies import (
    Accepted,
    AddVersionBody,
    AdvanceBody,
    DeployBody,
    ModelPath,
    PartPath,
    RegisterModelBody,
    RetireBody,
    ReviewBody,
    RollBackBody,
    RolloutBody,
)
from commands.http.command_app import Call, CommandApp, Refused
from commands.http.problems import busy_response, rejected_response
from commands.models import decide as model_decide
from commands.models.decide import (
    AddVersion,
    LifecycleCommand,
    RegisterModel,
    RetireModel,
    ReviewVersion,
    SubmitVersion,
    no_model,
)
from commands.models.semver import parse
from commands.processor.aggregates import MODEL
from commands.processor.context import CommandContext
from commands.processor.rejection import Rejected, forbidden, invalid
from commands.tenants.routes import existing_tenant
from events.facts.fact import DecidedFact, ModelId, TenantId, UserId
from events.process.artifacts import ArtifactMissing
from lifecycle.model import ActiveModel, Approved, NoModel
from lifecycle.state import Lifecycle

_ADDRESS = re.compile(r"^(model-[a-z0-9-]{1,160})-v(\d.*)$")


class Models:
    """A model, its versions and their reviews."""

    def __init__(self, app: CommandApp, intake: ArtifactIntake) -> None:
        self._app, self._intake = app, intake

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/models", tags=["models"])
        routes.post("", status_code=201, responses={201: {"model": Accepted}})(self.register)
        routes.get("/{model}")(self.read)
        routes.post("/{model}/versions", status_code=201, responses={201: {"model": Accepted}})(self.add_version)
        routes.post("/{model}/versions/{version}/submit", responses={200: {"model": Accepted}})(self.submit)
        routes.post("/{model}/versions/{version}/reviews", responses={200: {"model": Accepted}})(self.review)
        routes.post("/{model}/retire", responses={200: {"model": Accepted}})(self.retire)
        return routes

    def register(self, body: RegisterModelBody, request: Request) -> Response:
        """Takes a name for ever and describes the model behind it."""
        call = self._app.enter(request, "models")
        tenant = _tenant(self._app, call, body.tenant)
        model = ModelId(f"model-{body.domain}-{body.team}-{body.name}")
        command = RegisterModel(
            model,
            tenant,
            body.domain,
            body.team,
            body.name,
            body.scenario,
            body.task,
            UserId(body.owner or call.principal.user),
            body.description,
            body.tags,
            body.compliance.fact(),
        )
        return self._app.run(
            call,
            MODEL,
            model,
            lambda state, origin: model_decide.decide(state, command, origin),
            operation=f"register for {tenant}",
            body=body,
            answer=lambda _state, _facts: {"model": model, "tenant": tenant},
            status=201,
        )

    def read(self, model: ModelPath, request: Request) -> Response:
        """The state that commands are decided on. The ETag is its version."""
        call = self._app.enter(request, "models", "deploy", "read", "review:business", "review:security")
        state = self._app.aggregates.load(MODEL, model)
        if not _sees(call, state):
            return rejected_response(no_model(), call.headers)
        content = orjson.dumps({**asdict(state.model), "version": state.version, **_deployed(state)}, default=vars)
        return Response(content, 200, {**call.headers, "ETag": f'"{state.version}"'}, "application/json")

    def add_version(self, model: ModelPath, body: AddVersionBody, request: Request) -> Response:
        """Adds a draft whose bytes are fixed by digest; the file must be here and be what the description says."""
        call = self._app.enter(request, "models")
        known = self._app.aggregates.load(MODEL, model).model
        if not isinstance(known, ActiveModel) or not call.principal.acts_for(known.tenant):
            return _run_lifecycle(self._app, call, model, SubmitVersion(body.version), "add version")  # says 404 or 410
        technical = body.technical.fact()
        try:
            size, found = self._intake.check(known.tenant, body.artifact, technical)
        except ArtifactMissing:
            remedy = f"PUT the file to /v1/artifacts/{body.artifact} first"
            return rejected_response(invalid("artifact_missing", "no such artifact of this tenant", "artifact", remedy), call.headers)
        except IntakeBusy as e:
            return busy_response("inspection_busy", str(e), call.headers)
        if found is not None:
            return rejected_response(found, call.headers)
        lineage = body.lineage.fact()
        parents = frozenset(p for p in lineage.parents if _exists(self._app, call, p))
        command = AddVersion(body.version, technical, body.artifact, size, body.release_notes, lineage, parents)
        return _run_lifecycle(self._app, call, model, command, "add version", body, 201)

    def submit(self, model: ModelPath, version: PartPath, request: Request) -> Response:
        """Asks for review."""
        return _run_lifecycle(self._app, self._app.enter(request, "models"), model, SubmitVersion(version), f"submit {version}")

    def review(self, model: ModelPath, version: PartPath, body: ReviewBody, request: Request) -> Response:
        """One reviewer's verdict. Business and security are given by two people who did not make the version."""
        scope = "review:business" if body.review == "business" else "review:security"
        call = self._app.enter(request, scope)
        command = ReviewVersion(version, body.review, body.verdict, body.comment)
        return _run_lifecycle(self._app, call, model, command, f"review {version}", body, everybodys=True)

    def retire(self, model: ModelPath, body: RetireBody, request: Request) -> Response:
        """No more calls, for ever; what is loaded is unloaded."""
        call = self._app.enter(request, "models")
        return _run_lifecycle(self._app, call, model, RetireModel(body.reason, body.successor), "retire", body)


class Traffic:
    """Which of a model's versions takes which calls."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/models", tags=["traffic"])
        routes.post("/{model}/deployments", status_code=201, responses={201: {"model": Accepted}})(self.deploy)
        routes.delete("/{model}/deployments/{version}", responses={200: {"model": Accepted}})(self.undeploy)
        routes.post("/{model}/rollouts", status_code=201, responses={201: {"model": Accepted}})(self.start_rollout)
        routes.post("/{model}/rollouts/advance", responses={200: {"model": Accepted}})(self.advance)
        routes.post("/{model}/promote", responses={200: {"model": Accepted}})(self.promote)
        routes.post("/{model}/rollback", responses={200: {"model": Accepted}})(self.roll_back)
        return routes

    def deploy(self, model: ModelPath, body: DeployBody, request: Request) -> Response:
        """The first version takes all calls as soon as it is ready."""
        call = self._app.enter(request, "deploy")
        return _run_deployment(self._app, call, model, DeployVersion(body.version, body.spec.fact()), "deploy", body, 201)

    def undeploy(self, model: ModelPath, version: PartPath, request: Request, reason: str = "not needed") -> Response:
        """Unloads a standby version."""
        call = self._app.enter(request, "deploy")
        return _run_deployment(self._app, call, model, UndeployVersion(version, reason[:1000]), f"undeploy {version} {reason[:1000]}")

    def start_rollout(self, model: ModelPath, body: RolloutBody, request: Request) -> Response:
        """Loads a version beside the live one and gives it a share of the calls."""
        call = self._app.enter(request, "deploy")
        command = StartRollout(body.version, body.weight_percent, body.spec.fact() if body.spec else None)
        return _run_deployment(self._app, call, model, command, "start rollout", body, 201)

    def advance(self, model: ModelPath, body: AdvanceBody, request: Request) -> Response:
        """Changes the share of the new version."""
        call = self._app.enter(request, "deploy")
        return _run_deployment(self._app, call, model, AdvanceRollout(body.weight_percent), "advance", body)

    def promote(self, model: ModelPath, request: Request) -> Response:
        """The new version takes all calls; the old one stays loaded."""
        return _run_deployment(self._app, self._app.enter(request, "deploy"), model, PromoteRollout(), "promote")

    def roll_back(self, model: ModelPath, body: RollBackBody, request: Request) -> Response:
        """All calls go to an approved version again, by default the one before."""
        call = self._app.enter(request, "deploy")
        return _run_deployment(self._app, call, model, RollBack(body.reason, body.to_version or ""), "roll back", body)


def _run_lifecycle(
    app: CommandApp,
    call: Call,
    model: str,
    command: LifecycleCommand,
    operation: str,
    body: Any = None,
    status: int = 200,
    *,
    everybodys: bool = False,
) -> Response:
    decide = _owned(call, lambda state, origin: model_decide.decide(state, command, origin), everybodys)
    return app.run(call, MODEL, model, decide, operation=operation, body=body, answer=_answer, status=status)


def _run_deployment(
    app: CommandApp, call: Call, model: str, command: DeploymentCommand, operation: str, body: Any = None, status: int = 200
) -> Response:
    decide = _owned(call, lambda state, origin: deployment_decide.decide(state, command, origin), False)
    return app.run(call, MODEL, model, decide, operation=operation, body=body, answer=_answer, status=status)


_Decide = Callable[[Lifecycle, CommandContext], Sequence[DecidedFact] | Rejected]


def _owned(call: Call, decide: _Decide, everybodys: bool) -> _Decide:
    """A stranger's model is as unknown as one that does not exist. Reviewers are the market's own, and see every tenant's."""

    def decide_if_owned(state: Lifecycle, origin: CommandContext) -> Sequence[DecidedFact] | Rejected:
        if not everybodys and not isinstance(state.model, NoModel) and not call.principal.acts_for(state.model.tenant):
            return no_model()
        return decide(state, origin)

    return decide_if_owned


def _answer(state: Lifecycle, _facts: Sequence[DecidedFact]) -> dict[str, Any]:
    """What a person wants to know next: where the versions and the traffic stand now."""
    assert not isinstance(state.model, NoModel)
    return {"model": state.model.model, "state": state.model.kind, **_deployed(state)}


def _deployed(state: Lifecycle) -> dict[str, Any]:
    """What was decided about the traffic of a model that is not retired."""
    if not isinstance(state.model, ActiveModel):
        return {}
    return {"deployment": orjson.loads(orjson.dumps(state.deployment, default=vars))}


def _sees(call: Call, state: Lifecycle) -> bool:
    if isinstance(state.model, NoModel):
        return False
    return call.principal.acts_for(state.model.tenant) or call.principal.may("review:business", "review:security")


def _tenant(app: CommandApp, call: Call, asked: str | None) -> TenantId:
    tenant = TenantId(asked or call.principal.tenant)
    if not call.principal.acts_for(tenant):
        raise Refused(
            rejected_response(forbidden("foreign_tenant", "this key acts for its own tenant only", "tenant", "leave the field out"))
        )
    existing_tenant(app, tenant)
    return tenant


def _exists(app: CommandApp, call: Call, parent: str) -> bool:
    """Whether a version address `model-…-v1.0.0` is of a version the caller may know of: an approved one of anybody's model, or their own."""
    found = _ADDRESS.match(parent)
    if found is None or parse(found[2]) is None:
        return False
    model = app.aggregates.load(MODEL, found[1]).model
    if isinstance(model, NoModel) or found[2] not in model.versions:
        return False
    return call.principal.acts_for(model.tenant) or isinstance(model.versions[found[2]], Approved)
