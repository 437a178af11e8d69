"""Reports as facts what became of each deployed version: `VersionReady` or `VersionFailed`, once per change, and again
where the log has said something else since."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from events.alerts.fact_publisher import FactPublisher
from events.facts.deployments import VersionFailed, VersionReady
from events.facts.fact import ModelId, ModelVersion
from events.process.clock import now_us
from events.process.ids import new_id
from serving.control.serve_rest import DEPLOY_FAILED, AppStatus
from serving.gateway.served_models import Version

logger = logging.getLogger(__name__)

MESSAGE_CHARS_MAX = 500
REPEATED_S = 30.0
"""The fold has read a report long before. Where it still says otherwise, another program wrote since: nothing proves observed facts."""


class VersionReports:
    """Remembers what was published, since the fold reads it only later."""

    def __init__(self, producer: str, publisher: FactPublisher, clock: Callable[[], float] = time.monotonic) -> None:
        self._producer, self._publisher, self._clock = producer, publisher, clock
        self._published: dict[str, tuple[object, float]] = {}
        """Address of a version → its state in the last report, and when that was."""

    def report(self, version: Version, status: AppStatus | None, position: int) -> bool:
        """Publishes a change. True while the version is loading, or was asked for after `position`: a report of this round would be
        taken for one of an earlier deployment."""
        if status is None or version.since > position:
            return True
        if status.status == "RUNNING" and status.replicas > 0:
            if not version.ready or version.failure is not None:
                self._publish(version, ("ready", version.since), self._ready(version, status, position))
            return False
        if status.status in (DEPLOY_FAILED, "UNHEALTHY"):
            code, message = failure_of(status)
            if version.failure != (code, message):
                self._publish(version, ("failed", version.since, code, message), self._failed(version, code, message, position))
            return False
        return True

    def _publish(self, version: Version, state: object, fact: VersionReady | VersionFailed) -> None:
        before, at = self._published.get(version.address, (None, 0.0))
        if before == state and self._clock() - at < REPEATED_S:
            return
        self._publisher.publish("deployments", version.model, fact)
        self._published[version.address] = state, self._clock()
        logger.info("%s: %s", version.address, type(fact).__name__)

    def _ready(self, version: Version, status: AppStatus, position: int) -> VersionReady:
        return VersionReady(
            event_id=new_id(),
            occurred_at=now_us(),
            producer=self._producer,
            model=ModelId(version.model),
            model_version=ModelVersion(version.version),
            replicas=status.replicas,
            position=position,
        )

    def _failed(self, version: Version, code: str, message: str, position: int) -> VersionFailed:
        return VersionFailed(
            event_id=new_id(),
            occurred_at=now_us(),
            producer=self._producer,
            model=ModelId(version.model),
            model_version=ModelVersion(version.version),
            error_code=code,
            message=message,
            position=position,
        )


def failure_of(status: AppStatus) -> tuple[str, str]:
    """The code and message of a runtime (`LoadFailed: code: message`), or Serve's own."""
    found = re.search(r"LoadFailed: (\w+): ([^\n]*)", status.message)
    if found is not None:
        return found.group(1), found.group(2)[:MESSAGE_CHARS_MAX]
    lines = [line for line in status.message.strip().splitlines() if line.strip()]
    return status.status.lower(), (lines[-1] if lines else "")[:MESSAGE_CHARS_MAX]
