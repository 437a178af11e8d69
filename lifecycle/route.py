"""Where the calls of a model go now: only to versions that were seen ready."""

from __future__ import annotations

from dataclasses import dataclass

from lifecycle.deployment import Shifting
from lifecycle.model import Model, RetiredModel
from lifecycle.status import DeploymentStatus


@dataclass(frozen=True, slots=True)
class Route:
    """Versions and percent, adding up to 100, or none. `steady` is what is left when a canary must not be trusted (K5)."""

    weights: tuple[tuple[str, int], ...]
    steady: tuple[tuple[str, int], ...]
    canary: str | None


NOWHERE = Route((), (), None)


def route_of(model: Model, status: DeploymentStatus) -> Route:
    """A retired model takes no calls, whatever of it is still loaded."""
    return NOWHERE if isinstance(model, RetiredModel) else deployed_route(status)


def deployed_route(status: DeploymentStatus) -> Route:
    """The route as far as topic `deployments` says. Until the live version is ready, the one that took the calls before keeps them."""
    main, now = status.serving(), status.deployment
    if not main:
        return NOWHERE
    steady = ((main, 100),)
    if not isinstance(now, Shifting) or now.candidate == main or now.weight_percent == 0 or not status.versions[now.candidate].ready:
        return Route(steady, steady, None)
    if now.weight_percent >= 100:
        return Route(((now.candidate, 100),), steady, now.candidate)
    return Route(((main, 100 - now.weight_percent), (now.candidate, now.weight_percent)), steady, now.candidate)


def unloaded_at(model: Model, status: DeploymentStatus) -> dict[str, int]:
    """version → position of the fact that took it away. A retirement takes away everything that is loaded."""
    if not isinstance(model, RetiredModel):
        return dict(status.unloaded)
    return dict.fromkeys(status.versions, model.position) | dict(status.unloaded)


def in_service(model: Model, status: DeploymentStatus) -> tuple[str, ...]:
    """The versions that must be running."""
    return () if isinstance(model, RetiredModel) else tuple(status.versions)
