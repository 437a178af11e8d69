"""What the gateway and the controller need of one model, computed whenever its lifecycle changes, so that a call only reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from events.facts.deployments import ServiceSpec
from events.facts.models import ModelRetired, ModelVersionAdded, Technical, TensorSpec
from events.schema.trusted import build, trusted
from lifecycle import model as models
from lifecycle import status as statuses
from lifecycle.deployment import DeploymentFact, live_of, specs
from lifecycle.misfit import Misfit
from lifecycle.model import ActiveModel, ModelFact, NoModel, RetiredModel
from lifecycle.route import NOWHERE, Route, route_of, unloaded_at
from lifecycle.status import Degraded, DeploymentStatus, Failed, ObservedFact
from serving.model_interface import Interface, Tensor

_lifecycle_from = build(ActiveModel | RetiredModel)
DEFAULT_SPEC = ServiceSpec()


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model. `since` is the position of the fact that asked for it to be loaded, `withdrawn_at` of the one that took it
    away; `spec` is how it runs, or ran until it was withdrawn; `failure` is (code, message)."""

    model: str
    version: str
    address: str
    provider: str
    interface: Interface
    artifact: str
    platform: str
    spec: ServiceSpec = DEFAULT_SPEC
    deployed: bool = False
    since: int = 0
    ready: bool = False
    failure: tuple[str, str] | None = None
    withdrawn_at: int | None = None


class Model:
    """One model: its lifecycle, and what calls read of it. A fact replaces `versions`, then `route`, each whole, while calls come in on
    another thread; a version that is loaded no more stays among the versions."""

    __slots__ = ("calls", "lifecycle", "live", "model", "provider", "registered_at", "retired", "route", "status", "versions")

    def __init__(self, lifecycle: ActiveModel | RetiredModel, status: DeploymentStatus) -> None:
        self.lifecycle, self.status = lifecycle, status
        self.model: str = lifecycle.model
        self.provider: str = lifecycle.tenant
        self.registered_at = lifecycle.registered_at
        self.calls = 0
        """Counts calls, so that the split is exact and not merely likely."""
        self.versions: Mapping[str, Version] = {}
        self.live = ""
        self.retired: RetiredModel | None = None
        self.route: Route = NOWHERE
        self._show(lifecycle.versions)

    def apply(self, fact: ModelFact | DeploymentFact | ObservedFact, position: int) -> Misfit | None:
        """Takes a fact; one that does not follow changes nothing and is returned. Raises KeyError when it loads a version that was never
        added: then the fold has missed facts."""
        if isinstance(fact, ModelFact):
            lifecycle = models.evolve(self.lifecycle, fact, position)
            if isinstance(lifecycle, Misfit):
                return lifecycle
            assert not isinstance(lifecycle, NoModel)
            self.lifecycle = lifecycle
            if isinstance(fact, ModelVersionAdded):
                self._show((fact.model_version,))
            elif isinstance(fact, ModelRetired):
                self._show(lifecycle.versions)
            return None
        status = statuses.evolve(self.status, fact, position)
        if isinstance(status, Misfit):
            return status
        if missed := status.versions.keys() - self.lifecycle.versions.keys():
            raise KeyError(f"{type(fact).__name__} loads {', '.join(missed)} of {self.model}, which no ModelVersionAdded came before")
        before, self.status = self.status, status
        was, now = specs(before.deployment), specs(status.deployment)
        loaded = {v for v, version in status.versions.items() if before.versions.get(v) is not version or was[v] is not now[v]}
        self._show(loaded | (before.versions.keys() - status.versions.keys()))
        return None

    def _show(self, changed: Collection[str]) -> None:
        model, status = self.lifecycle, self.status
        self.retired = model if isinstance(model, RetiredModel) else None
        self.live = live_of(status.deployment)
        if changed:
            running, gone = specs(status.deployment), unloaded_at(model, status)
            self.versions = {**self.versions, **{name: self._version(name, running, gone) for name in changed}}
        self.route = route_of(model, status)

    def _version(self, name: str, running: Mapping[str, ServiceSpec], gone: Mapping[str, int]) -> Version:
        was, release = self.versions.get(name), self.lifecycle.versions[name].release
        interface = was.interface if was else _interface(release.technical)
        loaded = None if name in gone else self.status.versions.get(name)
        seen = loaded.readiness if loaded else None
        return Version(
            model=self.model,
            version=name,
            address=f"{self.model}-v{name}",
            provider=self.provider,
            interface=interface,
            artifact=release.artifact,
            platform=release.technical.format,
            spec=running[name] if loaded else was.spec if was else DEFAULT_SPEC,
            deployed=loaded is not None,
            since=loaded.since if loaded else was.since if was else 0,
            ready=loaded is not None and loaded.ready,
            failure=(seen.code, seen.message) if isinstance(seen, Failed | Degraded) else None,
            withdrawn_at=gone.get(name),
        )

    # --- snapshots

    def to_json(self) -> bytes:
        return orjson.dumps({"lifecycle": self.lifecycle, "status": self.status}, default=_part_to_json)

    @classmethod
    def from_json(cls, line: bytes, technicals: dict[str, Technical]) -> Model:
        """`technicals`: the descriptions of the lines before, by their text. Most versions of a model have the same one: it is built once."""
        state: dict[str, Any] = orjson.loads(line)
        for version in state["lifecycle"]["versions"].values():
            release = version["release"]
            text = release["technical"]
            technical = technicals.get(text)
            if technical is None:
                technical = technicals[text] = trusted(Technical, orjson.loads(text))
            release["technical"] = technical
        return cls(_lifecycle_from(state["lifecycle"]), trusted(DeploymentStatus, state["status"]))


def _part_to_json(part: object) -> str | dict[str, Any]:
    """A technical description is a text in the line, so that equal ones are seen before they are parsed."""
    return orjson.dumps(part, default=vars).decode() if isinstance(part, Technical) else vars(part)


def _interface(technical: Technical) -> Interface:
    return Interface(_tensors(technical.inputs), _tensors(technical.outputs))


def _tensors(declared: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    return tuple([Tensor(t.name, t.datatype, t.shape, t.nan_allowed) for t in declared])
