"""Keeps Ray Serve as the facts say: the only writer of its configuration, and the one who reports what became of it (K18).

It runs outside Ray, so that it can repair the death of Ray's head. Every round asks: what do the facts want, what configuration does
Ray have, what may be applied (`serve_plan.plan`), which versions became ready or failed.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, assert_never

from events.alerts.alerts import Alerts
from events.alerts.fact_publisher import FactPublisher
from events.log.client import LogUnavailable, Reader, Writer
from events.log.fold_runner import FoldRunner
from events.log.schemas import open_codec
from events.log.sign_in import ends_when_denied
from events.process.file_lock import FileLock
from events.process.health import serve_health
from events.process.json_logging import start_logging
from events.process.settings import Settings
from events.schema.codec import Codec
from serving.control.leadership import Leadership, NotLeader
from serving.control.retries import Retries, attempts_exhausted
from serving.control.serve_plan import ApplyConfig, Blocked, ConfigVersion, KeepConfig, attempt_of, plan
from serving.control.serve_rest import DEPLOY_FAILED, ConfigRefused, ServeRest, ServeStatus, ServeUnavailable
from serving.control.version_reports import VersionReports, failure_of
from serving.gateway.routes import Routes
from serving.gateway.served_models import Version
from serving.serve_names import APPLIED_APP

logger = logging.getLogger(__name__)

TOPICS = ("models", "deployments")
FOLLOW_S = 0.25
BUSY_S, IDLE_S = 0.25, 1.0
"""How often Ray is asked: while something loads, and while nothing does."""
DRAIN_S = 5.0
"""A withdrawn version stays this long, until every gateway has folded that it takes no more calls."""
PRODUCER = "controller"
DEPLOY_RULE = "controller.deploy_failed"


class Controller:
    """The process: folds the log, and while it leads, it runs rounds, until it is stopped."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stop = threading.Event()
        self._routes = Routes()
        self._health: dict[str, Any] = {"status": "starting", "lag": None, "detail": "starting"}
        self._fold_runner: FoldRunner | None = None
        self._alerts: Alerts | None = None
        """While this process leads."""

    def health(self) -> Mapping[str, Any]:
        """For /healthz."""
        runner = self._fold_runner
        if runner is None:
            return self._health
        detail = "; ".join([str(self._health["detail"]), *runner.troubles])
        return self._health | {
            "lag": runner.lag,
            "position": runner.position,
            "age_s": round(min(runner.age_s(), 1e9), 3),
            "detail": detail,
        }

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Until stopped. Raises what stops the fold: the supervisor starts a new process."""
        with self._only_one_here() as only_one:
            if not only_one:
                return
            codec, log_id = self._schemas()
            writer, rest = Writer(self.settings, PRODUCER), ServeRest(self.settings)
            snapshot = self.settings.folder / "snapshots" / "controller.snapshot"
            runner = FoldRunner(
                self.settings,
                codec,
                log_id,
                TOPICS,
                self._routes,
                name=PRODUCER,
                snapshot=snapshot,
                alarm=LeadersAlarm(lambda: self._alerts),
            )
            self._fold_runner = runner
            runner.start()
            try:
                with Leadership(self.settings, PRODUCER) as leadership:
                    self._lead_forever(runner, leadership, lambda: self._rounds(codec, log_id, writer, rest, leadership))
            finally:
                runner.stop()
                writer.close()
                rest.close()

    def _lead_forever(self, runner: FoldRunner, leadership: Leadership, new_rounds: Callable[[], Rounds]) -> None:
        """Rounds begin anew each time that this process comes to lead: another one may have done some meanwhile."""
        rounds: Rounds | None = None
        while not self._stop.is_set():
            if runner.failure is not None:
                raise runner.failure
            if not leadership.leads:
                rounds = self._alerts = None
                self._set_health("starting", "another controller leads, or none yet; this one folds the log")
                self._stop.wait(FOLLOW_S)
                continue
            rounds = rounds or new_rounds()
            self._stop.wait(self._round(runner, rounds))

    def _schemas(self) -> tuple[Codec, str]:
        reader = Reader(self.settings, "controller-start")
        try:
            return open_codec(self.settings, reader)
        finally:
            reader.close()

    def _rounds(self, codec: Codec, log_id: str, writer: Writer, rest: ServeRest, leadership: Leadership) -> Rounds:
        reader, publisher = Reader(self.settings, "controller-start"), FactPublisher(writer, codec)
        alerts = Alerts(PRODUCER, publisher)
        try:
            with suppress(LogUnavailable):  # an alert that stays open does less harm than a controller that does not start
                alerts.restore(codec, (record.value for record in reader.read("alerts")))
        finally:
            reader.close()
        self._alerts, reports = alerts, VersionReports(PRODUCER, publisher)
        return Rounds(self.settings, log_id, self._routes, rest, alerts=alerts, reports=reports, leadership=leadership)

    @contextmanager
    def _only_one_here(self) -> Generator[bool]:
        """One controller per data folder: a second waits until the first has ended, with which its lock goes. False when stopped meanwhile.
        Those of other hosts, which have folders of their own, wait for the leader (`Leadership`)."""
        with FileLock(self.settings.folder / "controller.lock") as lock:
            while not self._stop.is_set():
                if lock.acquire():
                    yield True
                    return
                self._set_health("starting", "another controller runs; waiting for it to end")
                self._stop.wait(0.5)
            yield False

    def _round(self, runner: FoldRunner, rounds: Rounds) -> float:
        """One round. Returns the seconds to wait before the next."""
        if not runner.caught_up:
            self._set_health("starting", "folding the log")
            return 0.05
        try:
            busy, status, detail = rounds.run(runner.store, runner.position)
        except ServeUnavailable as e:
            self._set_health("starting", f"Ray does not answer: {e}")
            return BUSY_S
        except ConfigRefused as e:
            self._set_health("failed", f"Ray refused the configuration: {e}")
            return IDLE_S
        except NotLeader as e:
            self._set_health("starting", str(e))
            return FOLLOW_S
        self._set_health(status, detail)
        return BUSY_S if busy else IDLE_S

    def _set_health(self, status: str, detail: str) -> None:
        if self._health.get("detail") != detail:
            logger.info("%s: %s", status, detail)
        self._health = {"status": status, "lag": None, "detail": detail}


class LeadersAlarm:
    """The fold's alarm: a process that does not lead leaves it to the one that does, which meets the same records."""

    def __init__(self, alerts: Callable[[], Alerts | None]) -> None:
        self._alerts = alerts

    def raise_(self, subject: str, rule: str, message: str, remedy: str) -> None:
        if (alerts := self._alerts()) is not None:
            alerts.raise_(subject, rule, message, remedy)

    def resolve(self, subject: str, rule: str) -> None:
        if (alerts := self._alerts()) is not None:
            alerts.resolve(subject, rule)


class Rounds:
    """What one round does: reconcile Ray with the facts, then report what became of each version."""

    def __init__(
        self,
        settings: Settings,
        log_id: str,
        routes: Routes,
        rest: ServeRest,
        *,
        alerts: Alerts,
        reports: VersionReports,
        leadership: Leadership,
    ) -> None:
        self._settings, self._log_id, self._routes, self._rest = settings, log_id, routes, rest
        self._alerts, self._reports, self._leadership = alerts, reports, leadership
        self._retries = Retries()
        self._withdrawn_since: dict[str, float] = {}
        self._applied: ConfigVersion | None = None

    def run(self, store: str, position: int) -> tuple[bool, str, str]:
        """Whether something is loading, and the controller's health: status and detail. Raises ServeUnavailable, ConfigRefused, NotLeader."""
        self._leadership.ensure()  # else it would report, and alert, beside the one that leads
        serve = self._rest.status()
        busy, status, detail = self._reconcile(ConfigVersion(self._log_id, store, position), serve)
        for version in self._deployed():
            busy |= self._reports.report(version, serve.apps.get(version.address), position)
        return busy, status, detail

    def _reconcile(self, now: ConfigVersion, serve: ServeStatus) -> tuple[bool, str, str]:
        decided = plan(
            self._routes.versions(),
            now,
            serve.applied,
            draining=self._draining(),
            approved_position=self._settings.removals_approved_position,
            retried=self._due_for_retry(serve),
        )
        match decided:
            case Blocked(code, message, remedy):
                self._alert(decided)
                return False, "failed", f"{code}: {message}; {remedy}"
            case ApplyConfig(config, removed, unknown_apps, blocked):
                apps = len(config["applications"])
                logger.info("applying position %d: %d applications, removing %s", now.position, apps, list(removed) or "none")
                self._rest.apply(config, until=self._leadership.ensure())
                self._applied = now
            case KeepConfig(unknown_apps, blocked):
                self._applied = serve.applied.version
            case _:
                assert_never(decided)
        self._alert(blocked)
        detail = f"applied position {self._applied.position if self._applied else 0}"
        detail += f"; no fact asks for {', '.join(unknown_apps)}" if unknown_apps else ""
        detail += f"; {blocked.code}: {blocked.message}; {blocked.remedy}" if blocked else ""
        return isinstance(decided, ApplyConfig), "ready", detail

    def _alert(self, blocked: Blocked | None) -> None:
        self._alerts.resolve_other_rules(PRODUCER, f"controller.{blocked.code}" if blocked else "")
        if blocked is not None:
            self._alerts.raise_(PRODUCER, f"controller.{blocked.code}", blocked.message, blocked.remedy)

    def _due_for_retry(self, serve: ServeStatus) -> frozenset[str]:
        """Applications that Ray gave up on and that are to be started once more; an alert for those that had all their attempts."""
        ours = {APPLIED_APP, *(v.address for v in self._deployed())}
        failed = {n: attempt_of(serve.applied.apps.get(n)) for n, s in serve.apps.items() if s.status == DEPLOY_FAILED and n in ours}
        for name in attempts_exhausted(failed):
            code, message = failure_of(serve.apps[name])
            remedy = "remove the cause, undeploy it, and deploy it again when it is gone; Ray's logs have the whole story"
            self._alerts.raise_(name, DEPLOY_RULE, f"{failed[name]} attempts to start {name} failed; the last: {code}: {message}", remedy)
        not_running = frozenset(n for n, s in serve.apps.items() if s.status != "RUNNING" and n in ours)
        self._alerts.resolve_other_subjects(DEPLOY_RULE, not_running)
        due = self._retries.due(failed, time.monotonic(), endless=APPLIED_APP)
        for name in due:
            logger.warning("starting %s again: attempt %d failed", name, failed[name])
        return due

    def _draining(self) -> frozenset[str]:
        withdrawn = {v.address for v in self._routes.versions() if v.withdrawn_at is not None}
        now = time.monotonic()
        self._withdrawn_since = {address: self._withdrawn_since.get(address, now) for address in withdrawn}
        return frozenset(address for address, since in self._withdrawn_since.items() if now - since < DRAIN_S)

    def _deployed(self) -> list[Version]:
        return [v for v in self._routes.versions() if v.deployed]


@ends_when_denied
def main() -> None:
    start_logging(PRODUCER)
    settings = Settings()
    controller = Controller(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        controller.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = serve_health(settings.host, settings.controller_health_port, controller.health)
    try:
        controller.run()
    finally:
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
