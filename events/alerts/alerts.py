"""The alerts of one producer: each is raised once, raised anew when its remedy changes, and resolved when its cause is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from events.alerts.fact_publisher import FactPublisher
from events.facts.alerts import AlertRaised, AlertResolved
from events.process.clock import now_us
from events.process.ids import new_id
from events.schema.codec import Codec, Undecodable


class Alerts:
    """What this producer has raised and not resolved, by subject and rule. Threads share one. Raises LogUnavailable and LogBroken; nothing is
    noted then, so that the next call tries again."""

    def __init__(self, producer: str, publisher: FactPublisher) -> None:
        self._producer, self._publisher, self._lock = producer, publisher, threading.RLock()
        self._open: dict[tuple[str, str], tuple[str, str]] = {}
        """Subject and rule → remedy and event id."""

    def raise_(self, subject: str, rule: str, message: str, remedy: str) -> None:
        with self._lock:
            known = self._open.get((subject, rule))
            if known is not None and known[0] == remedy:
                return
            self.resolve(subject, rule)
            fact = AlertRaised(
                event_id=new_id(),
                occurred_at=now_us(),
                producer=self._producer,
                subject=subject,
                rule=rule,
                severity="critical",
                message=message,
                remedy=remedy,
            )
            self._publisher.publish("alerts", subject, fact)
            self._open[subject, rule] = (remedy, fact.event_id)

    def resolve(self, subject: str, rule: str) -> None:
        with self._lock:
            known = self._open.get((subject, rule))
            if known is not None:
                fact = AlertResolved(
                    event_id=new_id(), occurred_at=now_us(), producer=self._producer, subject=subject, rule=rule, raised=known[1]
                )
                self._publisher.publish("alerts", subject, fact)
                del self._open[subject, rule]

    def resolve_other_rules(self, subject: str, rule: str) -> None:
        """All alerts of a subject but that of this rule."""
        for open_subject, open_rule in list(self._open):
            if open_subject == subject and open_rule != rule:
                self.resolve(open_subject, open_rule)

    def resolve_other_subjects(self, rule: str, subjects: frozenset[str]) -> None:
        """All alerts of a rule but those of these subjects."""
        for open_subject, open_rule in list(self._open):
            if open_rule == rule and open_subject not in subjects:
                self.resolve(open_subject, open_rule)

    def restore(self, codec: Codec, frames: Iterable[bytes | None]) -> None:
        """Takes over the alerts that an earlier process left open, from the records of topic `alerts` in their order: a cause that has gone
        while no process ran is resolved, too."""
        for frame in frames:
            try:
                name, body = codec.decode(frame)
            except Undecodable:
                continue  # raises and resolves nothing
            if name == "AlertRaised" and body["producer"] == self._producer:
                self._open[body["subject"], body["rule"]] = (body["remedy"], body["event_id"])
            elif name == "AlertResolved":
                self._open = {which: known for which, known in self._open.items() if known[1] != body["raised"]}
