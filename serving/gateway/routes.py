"""Who may call what, where a call goes and what it costs: keys, models, weights and prices as a fold of the decided facts.

A plain state machine on dictionaries, without validation (K5): the facts were checked when they were decided. What a caller
sees of a model is one frozen `Route`, replaced whole, so that a reader in another thread never sees half a change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import orjson

from access.keys import KEYS_FORMAT, Keys
from events.log.record import Coordinate
from serving.gateway.current_prices import CurrentPrices
from serving.model_interface import Interface, interface_of

SPREAD = 61
"""A step through the hundred slots of a split that keeps equal versions far apart: coprime with 100, near its golden section."""


OBSERVED = frozenset({"VersionReady", "VersionFailed", "RouteApplied"})
"""The facts of topic `deployments` that no store has ordered."""

LINES_AT_ONCE = 2000
"""Lines of a slice of a snapshot: copied in a millisecond or two, so that no call waits for longer."""


@dataclass(slots=True)
class Version:
    """What the facts say of one version. `since` is the position of the fact that asked for it to be loaded, `withdrawn_at` of the
    one that took it away."""

    model: str
    version: str
    provider: str
    interface: Interface
    artifact: str
    platform: str
    spec: Mapping[str, Any] | None = None
    deployed: bool = False
    withdrawn: bool = False
    withdrawn_at: int = 0
    since: int = 0
    ready: bool = False
    failure: tuple[str, str] | None = None

    @property
    def address(self) -> str:
        return f"{self.model}-v{self.version}"


@dataclass(frozen=True, slots=True)
class Route:
    """Where the calls of a model go. `steady` is what is left when a canary must not be trusted (K5)."""

    weights: tuple[tuple[str, int], ...]
    steady: tuple[tuple[str, int], ...]
    canary: str | None


NOWHERE = Route((), (), None)


@dataclass(frozen=True, slots=True)
class Retirement:
    reason: str
    successor: str


@dataclass(slots=True)
class Model:
    model: str
    provider: str
    versions: dict[str, Version] = field(default_factory=dict[str, Version])
    live: str | None = None
    before: str | None = None
    """Carried the calls before `live` did, and carries them until `live` is loaded."""
    canary: str | None = None
    weight: int = 0
    retired: Retirement | None = None
    route: Route = NOWHERE
    calls: int = 0
    """Counts calls, so that the split is exact and not merely likely."""
    registered_at: int = 0


def pick(weights: tuple[tuple[str, int], ...], turn: int) -> str:
    """The version that takes call number `turn`; weights are percent. Exact over every hundred calls, and spread within them."""
    if len(weights) == 1:
        return weights[0][0]
    slot = turn * SPREAD % 100
    for version, weight in weights:
        if slot < weight:
            return version
        slot -= weight
    raise AssertionError("the weights of a route add up to 100")


class Routes:
    """The fold: implements `events.log.fold_runner.Fold`. It never skips a fact silently."""

    code_version = f"routes-6 {KEYS_FORMAT}"

    def __init__(self) -> None:
        self.keys = Keys()
        self.models: dict[str, Model] = {}
        self.prices = CurrentPrices()
        self.changed: set[str] = set()
        """Models whose route moved since somebody last looked."""
        self._lines: dict[str, bytes] = {}
        """Each model as its line in a snapshot, as it was when the last one was taken."""
        self._moved: set[str] = set()
        """Models whose line is no longer true."""

    def apply(self, name: str, body: dict[str, Any], at: Coordinate) -> None:
        match name:
            case "ApiKeyIssued":
                self.keys.issue(body)
            case "ApiKeyRevoked":
                self.keys.revoke(body["tenant"], body["key_id"])
            case "TenantCreated":
                self.prices.add_tenant(body)
            case "PriceBookPublished":
                self.prices.add_version(body)
            case "ModelRegistered":
                self.models[body["model"]] = Model(body["model"], body["tenant"], registered_at=body["occurred_at"])
                self._moved.add(body["model"])
            case _ if "model" in body:
                self._apply_to_model(name, body)
            case _:
                pass  # store epochs: nothing to route by

    def _apply_to_model(self, name: str, body: Mapping[str, Any]) -> None:
        model = self.models.get(body["model"])
        if model is None and name in OBSERVED:
            return  # anybody who can write to the log can say this of a model that is not; it changes nothing
        if model is None:
            raise KeyError(f"{name} of {body['model']}, which no ModelRegistered came before")
        self._moved.add(model.model)
        match name:
            case "ModelVersionAdded":
                technical = body["technical"]
                model.versions[body["model_version"]] = Version(
                    model=model.model,
                    version=body["model_version"],
                    provider=model.provider,
                    interface=interface_of(technical),
                    artifact=body["artifact"],
                    platform=technical["format"],
                )
            case "ModelRetired":
                model.retired = Retirement(body["reason"], body.get("successor", ""))
                for version in model.versions.values():
                    if version.deployed:
                        withdraw(version, body.get("position", 0))
            case "VersionReady" | "VersionFailed":
                seen(model, name, body)
            case _:
                shift(model, name, body, body.get("position", 0))
        route = route_of(model)
        if route != model.route:
            model.route = route
            self.changed.add(model.model)

    # --- snapshots

    def dump(self) -> Iterator[bytes]:
        """How many models and price lists, a line for each, a line for each key."""
        for name in self._moved:
            self._lines[name] = orjson.dumps(self.models[name])
        self._moved.clear()
        models, prices, keys = list(self._lines.values()), self.prices.lines(), self.keys.dump()
        return chain((b"%d %d\n" % (len(models), len(prices)),), _slices(models), _slices(prices), keys)

    def load(self, state: bytes) -> None:
        head, *lines, _ = state.split(b"\n")
        count, prices_count = map(int, head.split())
        packed, priced, keys = lines[:count], lines[count : count + prices_count], lines[count + prices_count :]
        models = {m.model: m for m in map(_model_from, map(orjson.loads, packed))}
        self.prices, self.keys, self.models = CurrentPrices.load(priced), Keys.load(keys), models
        self._lines = dict(zip(models, packed, strict=True))
        self._moved.clear()
        self.changed = {m.model for m in models.values() if m.route != NOWHERE}

    # --- questions

    def versions(self) -> list[Version]:
        """All of them; a copy, since the fold goes on in its own thread."""
        return [v for m in list(self.models.values()) for v in list(m.versions.values())]

    def find(self, name: str) -> tuple[Model, str | None] | None:
        """The model of a name and the version the name pins: the full id, or the address `…-v{semver}`."""
        model = self.models.get(name)
        if model is not None:
            return model, None
        head, mark, version = name.rpartition("-v")
        while mark:
            model = self.models.get(head)
            if model is not None:
                return model, version
            head, mark, tail = head.rpartition("-v")
            version = f"{tail}-v{version}"
        return None


def _slices(lines: list[bytes]) -> Iterator[bytes]:
    return (b"".join([line + b"\n" for line in lines[at : at + LINES_AT_ONCE]]) for at in range(0, len(lines), LINES_AT_ONCE))


def _model_from(state: dict[str, Any]) -> Model:
    versions: dict[str, Version] = {
        name: Version(**(v | {"interface": interface_of(v["interface"]), "failure": tuple(v["failure"]) if v["failure"] else None}))
        for name, v in state["versions"].items()
    }
    retired = Retirement(**state["retired"]) if state["retired"] else None
    parts: dict[str, Any] = state | {"versions": versions, "retired": retired, "route": NOWHERE}
    model = Model(**parts)
    model.route = route_of(model)
    return model


def shift(model: Model, name: str, body: Mapping[str, Any], position: int) -> None:
    """The decided facts of a deployment: who is loaded, who is live, who is tried."""
    match name:
        case "VersionDeployed":
            load(model, body["model_version"], position, body)
            stand_in = model.live
            model.live, model.before = body["model_version"], stand_in if stand_in != body["model_version"] else model.before
        case "RolloutStarted":
            load(model, body["to_version"], position, body)
            model.canary, model.weight = body["to_version"], body["weight_percent"]
        case "RolloutAdvanced":
            model.canary, model.weight = body["to_version"], body["weight_percent"]
        case "RolloutPromoted":
            model.live, model.before, model.canary, model.weight = body["to_version"], body["from_version"], None, 0
        case "RolledBack":
            load(model, body["to_version"], position, body)
            model.live, model.before, model.canary, model.weight = body["to_version"], body["from_version"], None, 0
        case "VersionUndeployed":
            unload(model, body["model_version"], position)
        case _:
            pass  # submitted, reviewed, approved, applied elsewhere: no call goes another way for it


def load(model: Model, name: str, position: int, body: Mapping[str, Any]) -> None:
    version = model.versions[name]
    if not version.deployed:
        version.deployed, version.withdrawn, version.ready, version.failure, version.since = True, False, False, None, position
    if body.get("spec") is not None:
        version.spec = body["spec"]


def withdraw(version: Version, position: int) -> None:
    version.deployed = version.ready = False
    version.withdrawn, version.withdrawn_at = True, position


def unload(model: Model, name: str, position: int) -> None:
    withdraw(model.versions[name], position)
    if model.canary == name:
        model.canary, model.weight = None, 0
    if model.before == name:
        model.before = None
    if model.live == name:
        model.live, model.before = model.before, None


def seen(model: Model, name: str, body: Mapping[str, Any]) -> None:
    """What the controller saw. News of an earlier deployment of the same version says nothing of this one."""
    version = model.versions.get(body["model_version"])
    if version is None or not version.deployed or body["position"] < version.since:
        return
    if name == "VersionReady":
        version.ready, version.failure = True, None
        return
    version.failure = (body["error_code"], body["message"])
    if version.version != model.live:  # what is live stays live: a failed update leaves the old replicas serving
        version.ready = False


def route_of(model: Model) -> Route:
    """Only a version that was seen ready takes calls. Until the live one is, the one before it keeps them."""
    if model.retired is not None:
        return NOWHERE

    def ready(name: str | None) -> str | None:
        return name if name is not None and model.versions[name].ready else None

    main = ready(model.live) or ready(model.before)
    trial = ready(model.canary)
    if main is None:
        return NOWHERE
    steady = ((main, 100),)
    if trial is None or trial == main or model.weight == 0:
        return Route(steady, steady, None)
    if model.weight >= 100:
        return Route(((trial, 100),), steady, trial)
    return Route(((main, 100 - model.weight), (trial, model.weight)), steady, trial)
