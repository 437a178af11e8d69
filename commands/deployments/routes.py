"""The resource of a model's traffic: which of its versions takes which calls."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from commands.deployments.decide import DeploymentCommand, PromoteRollout, UndeployVersion, decide
from commands.deployments.requests import AdvanceRequest, DeployRequest, RollBackRequest, RolloutRequest
from commands.http.bounds import REASON_CHARS_MAX, ModelPath, TextPath
from commands.http.command_app import CommandApp
from commands.http.operations import command
from commands.models.aggregate import MODEL
from commands.models.answers import ModelAnswer
from commands.models.visibility import model_answer, owned
from commands.processor.command_handler import CommandHandler
from lifecycle.state import Lifecycle


class Deployments:
    """Which of a model's versions takes which calls."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/models", tags=["traffic"])
        command(routes, "POST", "/{model}/deployments", ModelAnswer, created=True, gone=True)(self.deploy)
        command(routes, "DELETE", "/{model}/deployments/{version}", ModelAnswer, gone=True)(self.undeploy)
        command(routes, "POST", "/{model}/rollouts", ModelAnswer, created=True, gone=True)(self.start_rollout)
        command(routes, "POST", "/{model}/rollouts/advance", ModelAnswer, gone=True)(self.advance)
        command(routes, "POST", "/{model}/promote", ModelAnswer, gone=True)(self.promote)
        command(routes, "POST", "/{model}/rollback", ModelAnswer, gone=True)(self.roll_back)
        return routes

    def deploy(self, model: ModelPath, body: DeployRequest, request: Request) -> Response:
        """The first version takes all calls as soon as it is ready."""
        return self._app.run(self._app.authorize(request, "deploy"), START, model, body.command(), body)

    def undeploy(self, model: ModelPath, version: TextPath, request: Request, reason: str = "not needed") -> Response:
        """Unloads a standby version."""
        return self._app.run(self._app.authorize(request, "deploy"), CHANGE, model, UndeployVersion(version, reason[:REASON_CHARS_MAX]))

    def start_rollout(self, model: ModelPath, body: RolloutRequest, request: Request) -> Response:
        """Loads a version beside the live one and gives it a share of the calls."""
        return self._app.run(self._app.authorize(request, "deploy"), START, model, body.command(), body)

    def advance(self, model: ModelPath, body: AdvanceRequest, request: Request) -> Response:
        """Changes the share of the new version."""
        return self._app.run(self._app.authorize(request, "deploy"), CHANGE, model, body.command(), body)

    def promote(self, model: ModelPath, request: Request) -> Response:
        """The new version takes all calls; the old one stays loaded."""
        return self._app.run(self._app.authorize(request, "deploy"), CHANGE, model, PromoteRollout())

    def roll_back(self, model: ModelPath, body: RollBackRequest, request: Request) -> Response:
        """All calls go to an approved version again, by default the one before."""
        return self._app.run(self._app.authorize(request, "deploy"), CHANGE, model, body.command(), body)


START = CommandHandler[Lifecycle, DeploymentCommand](MODEL, decide, model_answer, owned, created=True)
CHANGE = CommandHandler[Lifecycle, DeploymentCommand](MODEL, decide, model_answer, owned)
