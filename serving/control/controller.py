"""Keeps Ray as the facts say: the only writer of Serve's configuration, and the one who reports what became of it (K18).

It runs outside Ray, so that the death of Ray's head is something it repairs. Every round: what do the facts want, what does Ray
say it was told, what may be sent (`serve_plan.plan`), what has become ready or failed.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, assert_never

from events.facts.deployments import VersionFailed, VersionReady
from events.facts.fact import ModelId, ModelVersion
from events.log.client import LogUnavailable, Reader, Writer
from events.log.fold_runner import FoldRunner
from events.log.headers import headers_of
from events.log.schemas import open_codec
from events.process.clock import now_us
from events.process.file_lock import FileLock
from events.process.health import serve_health
from events.process.ids import new_id
from events.process.json_logging import start_logging
from events.process.settings import Settings
from events.schema.codec import Codec
from serving.control.alerting import Alerts
from serving.control.ray_rest import AppState, RayAway, RayRefused, RayRest, Seen
from serving.control.retries import FAILED, Retries, given_up
from serving.control.serve_plan import Apply, Generation, Hold, Keep, Shape, attempt_of, plan
from serving.gateway.routes import Routes, Version
from serving.serve_names import GATEWAY_APP

logger = logging.getLogger(__name__)

TOPICS = ("models", "deployments")
BUSY_S, IDLE_S = 0.25, 1.0
"""How often Ray is asked: while something loads, and while nothing does."""
LEAVE_S = 5.0
"""A withdrawn version stays this long, until every gateway has folded that it takes no more calls."""
MESSAGE_CHARS_MAX = 500
PRODUCER = "controller"
DEPLOY_RULE = "controller.deploy_failed"


@dataclass(frozen=True, slots=True)
class Voice:
    """How the controller speaks: facts of its own, and alerts."""

    writer: Writer
    codec: Codec
    alerts: Alerts


class Controller:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stop = threading.Event()
        self._routes = Routes()
        self._ray = RayRest(settings)
        self._status: dict[str, Any] = {"status": "starting", "lag": None, "detail": "starting"}
        self._said: dict[str, object] = {}
        """What was last reported of each version, so that each change is reported once although the log echoes later."""
        self._left: dict[str, float] = {}
        self._applied: Generation | None = None
        self._retries = Retries()
        self._fold_runner: FoldRunner | None = None

    def state(self) -> Mapping[str, Any]:
        """For /healthz."""
        fold_runner = self._fold_runner
        if fold_runner is None:
            return self._status
        return self._status | {"lag": fold_runner.lag, "position": fold_runner.position, "age_s": round(min(fold_runner.age_s(), 1e9), 3)}

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Until stopped. Raises what stops the fold: the supervisor starts a new process."""
        with self._alone() as alone:
            if not alone:
                return
            writer = Writer(self.settings, PRODUCER)
            voice, log_id = self._open(writer)
            snapshot = self.settings.folder / "snapshots" / "controller.snapshot"
            fold_runner = self._fold_runner = FoldRunner(
                self.settings, voice.codec, log_id, TOPICS, self._routes, name=PRODUCER, snapshot=snapshot
            )
            fold_runner.start()
            try:
                while not self._stop.is_set():
                    if fold_runner.failure is not None:
                        raise fold_runner.failure
                    self._stop.wait(self._round(fold_runner, log_id, voice))
            finally:
                fold_runner.stop()
                writer.close()
                self._ray.close()

    def _open(self, writer: Writer) -> tuple[Voice, str]:
        reader = Reader(self.settings, "controller-start")
        try:
            codec, log_id = open_codec(self.settings, reader)
            alerts = Alerts(PRODUCER, writer, codec)
            with suppress(LogUnavailable):  # an alert that stays open does less harm than a controller that does not start
                alerts.take_up(record.value for record in reader.read("alerts"))
            return Voice(writer, codec, alerts), log_id
        finally:
            reader.close()

    @contextmanager
    def _alone(self) -> Generator[bool]:
        """One controller per stack: a second waits until the first is gone. The lock goes with the process. False when stopped meanwhile."""
        with FileLock(self.settings.folder / "controller.lock") as lock:
            while not self._stop.is_set():
                if lock.acquire():
                    yield True
                    return
                self._say("starting", "another controller is at work; waiting for it to end")
                self._stop.wait(0.5)
            yield False

    # --- one round

    def _round(self, fold_runner: FoldRunner, log_id: str, voice: Voice) -> float:
        """Returns how long to wait before the next."""
        if not fold_runner.caught_up:
            self._say("starting", "folding the log")
            return 0.05
        now = Generation(log_id, fold_runner.store, fold_runner.position)
        try:
            seen = self._ray.look()
            busy = self._reconcile(now, seen, voice)
            for version in self._loaded():
                busy |= self._report(version, seen.states.get(version.address), now.position, voice)
        except RayAway as e:
            self._say("starting", f"Ray does not answer: {e}")
            return BUSY_S
        except RayRefused as e:
            self._say("failed", f"Ray refused the configuration: {e}")
            return IDLE_S
        return BUSY_S if busy else IDLE_S

    def _reconcile(self, now: Generation, seen: Seen, voice: Voice) -> bool:
        shape = Shape(self.settings.host, self.settings.gateway_port, self.settings.gateways_per_node, self._ray.nodes())
        decided = plan(
            self._routes,
            now,
            seen.applied,
            shape,
            leaving=self._leaving(),
            approved_position=self.settings.removals_approved_position,
            again=self._again(seen, voice.alerts),
        )
        match decided:
            case Hold(code, message, remedy):
                self._say("failed", f"{code}: {message}; {remedy}")
                self._hold(decided, voice.alerts)
                return False
            case Apply(config, removed, unexplained, held):
                logger.info(
                    "applying position %d: %d applications, removing %s", now.position, len(config["applications"]), list(removed) or "none"
                )
                self._ray.apply(config)
                self._applied = now
            case Keep(unexplained, held):
                self._applied = seen.applied.generation
            case _:
                assert_never(decided)
        self._hold(held, voice.alerts)
        extra = f"; no fact asks for {', '.join(unexplained)}" if unexplained else ""
        extra += f"; {held.code}: {held.message}; {held.remedy}" if held else ""
        self._say("ready", f"applied position {self._applied.position if self._applied else 0}{extra}")
        return isinstance(decided, Apply)

    def _again(self, seen: Seen, alerts: Alerts) -> frozenset[str]:
        """Applications that Ray gave up on and that are to be tried once more; those that had all their attempts are told."""
        ours = {GATEWAY_APP, *(v.address for v in self._loaded())}
        failed = {n: attempt_of(seen.applied.apps.get(n)) for n, s in seen.states.items() if s.status == FAILED and n in ours}
        for name in given_up(failed):
            code, message = _failure(seen.states[name])
            remedy = "mend the cause, undeploy it, and deploy it again when it is gone; Ray's logs have the whole story"
            alerts.raise_(name, DEPLOY_RULE, f"{failed[name]} attempts to start {name} failed; the last: {code}: {message}", remedy)
        alerts.resolve_others(DEPLOY_RULE, frozenset(n for n, s in seen.states.items() if s.status != "RUNNING" and n in ours))
        again = self._retries.due(failed, time.monotonic(), endless=GATEWAY_APP)
        for name in again:
            logger.warning("starting %s again: attempt %d failed", name, failed[name])
        return again

    def _hold(self, hold: Hold | None, alerts: Alerts) -> None:
        alerts.resolve_other_rules(PRODUCER, f"controller.{hold.code}" if hold else "")
        if hold is not None:
            alerts.raise_(PRODUCER, f"controller.{hold.code}", hold.message, hold.remedy)

    def _leaving(self) -> frozenset[str]:
        withdrawn = {v.address for v in self._routes.versions() if v.withdrawn}
        now = time.monotonic()
        self._left = {a: self._left.get(a, now) for a in withdrawn}
        return frozenset(a for a, since in self._left.items() if now - since < LEAVE_S)

    def _loaded(self) -> list[Version]:
        return [v for v in self._routes.versions() if v.deployed]

    # --- what became of it

    def _report(self, version: Version, state: AppState | None, position: int, voice: Voice) -> bool:
        """Reports a version's change once; True while it is still loading, or was asked for after `position`: folds would take what is
        said of it now for word of an earlier deployment."""
        if state is None or version.since > position:
            return True
        if state.status == "RUNNING" and state.replicas > 0:
            if not version.ready or version.failure is not None:
                self._tell(version, ("ready", version.since), voice, _ready(version, state, position))
            return False
        if state.status in (FAILED, "UNHEALTHY"):
            code, message = _failure(state)
            if version.failure != (code, message):
                self._tell(version, ("failed", version.since, code, message), voice, _failed(version, code, message, position))
            return False
        return True

    def _tell(self, version: Version, what: object, voice: Voice, fact: VersionReady | VersionFailed) -> None:
        if self._said.get(version.address) == what:
            return
        said = headers_of(fact)
        voice.writer.append("deployments", version.model.encode(), voice.codec.encode(fact), said)
        self._said[version.address] = what
        logger.info("%s is %s", version.address, type(fact).__name__)

    def _say(self, status: str, detail: str) -> None:
        if self._status.get("detail") != detail:
            logger.info("%s: %s", status, detail)
        self._status = {"status": status, "lag": None, "detail": detail}


def _ready(version: Version, state: AppState, position: int) -> VersionReady:
    return VersionReady(
        event_id=new_id(),
        occurred_at=now_us(),
        producer=PRODUCER,
        model=ModelId(version.model),
        model_version=ModelVersion(version.version),
        replicas=state.replicas,
        position=position,
    )


def _failed(version: Version, code: str, message: str, position: int) -> VersionFailed:
    return VersionFailed(
        event_id=new_id(),
        occurred_at=now_us(),
        producer=PRODUCER,
        model=ModelId(version.model),
        model_version=ModelVersion(version.version),
        error_code=code,
        message=message,
        position=position,
    )


def _failure(state: AppState) -> tuple[str, str]:
    """The code a runtime gave (`LoadFailed: code: message`), or Serve's own word."""
    found = re.search(r"LoadFailed: (\w+): ([^\n]*)", state.message)
    if found is not None:
        return found.group(1), found.group(2)[:MESSAGE_CHARS_MAX]
    lines = [line for line in state.message.strip().splitlines() if line.strip()]
    return state.status.lower(), (lines[-1] if lines else "")[:MESSAGE_CHARS_MAX]


def main() -> None:
    start_logging(PRODUCER)
    settings = Settings()
    controller = Controller(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        controller.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = serve_health(settings.host, settings.controller_health_port, controller.state)
    try:
        controller.run()
    finally:
        server.shutdown()


if __name__ == "__main__":
    main()
