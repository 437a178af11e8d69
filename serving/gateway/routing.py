"""Which version takes a call: the one its path pins, or the one whose turn it is in the model's weights."""

from __future__ import annotations

from serving.gateway.routes import Routes, pick
from serving.gateway.served_models import Model, Version
from serving.refused import Refused, unavailable


def find_model(routes: Routes, name: str, version: str | None) -> tuple[Model, str | None]:
    """The model of a name, and the version that the path or the name pins. Raises Refused (404)."""
    found = routes.find(name)
    if found is None or (version is not None and found[1] not in (None, version)):
        raise Refused(404, "unknown_model", f"there is no model {name[:200]!r}", "model", "GET /v1/models lists what you may call")
    return found[0], version or found[1]


def choose_version(model: Model, pinned: str | None, *, canary_trusted: bool) -> tuple[Version, str]:
    """The version that takes this call, and the `route` of its usage fact: `pinned`, or live, canary or steady with its share in
    percent. Raises Refused as `servable_version` does. A canary takes calls only while the fold is fresh (K5)."""
    if pinned is not None:
        return servable_version(model, pinned, canary_trusted=True), "pinned"
    route = model.route  # read once: the fold replaces it at any time, in a thread of its own
    weights = route.weights if canary_trusted else route.steady
    if model.retired is not None or not weights:
        # Retired, not deployed, not loaded: each with its own reason; or loaded in this very moment.
        return servable_version(model, None, canary_trusted=canary_trusted), "live:100"
    model.calls += 1
    name = pick(weights, model.calls)
    share = dict(weights)[name]
    kind = "canary" if name == route.canary else "live" if canary_trusted else "steady"
    return model.versions[name], f"{kind}:{share}"


def servable_version(model: Model, pinned: str | None, *, canary_trusted: bool) -> Version:
    """The version a name stands for. Raises Refused: 410 with the successor, 404, or 503 while it loads."""
    if model.retired is not None:
        successor = model.retired.successor
        remedy = f"call {successor}" if successor else "GET /v1/models lists what can be called"
        raise Refused(410, "model_retired", f"{model.model} was retired: {model.retired.reason}", "model", remedy, successor=successor)
    if pinned is None:
        weights = model.route.weights if canary_trusted else model.route.steady
        if weights:
            return model.versions[weights[0][0]]
        if not model.live:
            raise Refused(
                404, "not_deployed", f"no version of {model.model} is deployed", "model", "GET /v1/models lists what can be called"
            )
        pinned = model.live
    version = model.versions.get(pinned)
    if version is None or not version.deployed:
        raise Refused(
            404,
            "version_not_deployed",
            f"version {pinned[:80]} of {model.model} is not deployed",
            "version",
            "GET the model's metadata for its versions",
        )
    if not version.ready:
        why = f": {version.failure[1]}" if version.failure else ""
        raise unavailable("version_not_ready", f"version {pinned} of {model.model} is not loaded{why[:200]}", 2)
    return version
