"""The controller's alerts: each is raised once, said anew when something else is to be done, and resolved when it is over."""

from __future__ import annotations

from collections.abc import Iterable

from events.facts.alerts import AlertRaised, AlertResolved
from events.log.client import Writer
from events.log.headers import headers_of
from events.process.clock import now_us
from events.process.ids import new_id
from events.schema.codec import Codec, Undecodable


class Alerts:
    """What this producer has raised and not resolved, by subject and rule."""

    def __init__(self, producer: str, writer: Writer, codec: Codec) -> None:
        self._producer, self._writer, self._codec = producer, writer, codec
        self._open: dict[tuple[str, str], tuple[str, str]] = {}
        """→ remedy, event id."""

    def raise_(self, subject: str, rule: str, message: str, remedy: str) -> None:
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
        self._write(fact)
        self._open[subject, rule] = (remedy, fact.event_id)

    def resolve(self, subject: str, rule: str) -> None:
        known = self._open.pop((subject, rule), None)
        if known is not None:
            said = {"event_id": new_id(), "occurred_at": now_us(), "producer": self._producer}
            self._write(AlertResolved(**said, subject=subject, rule=rule, raised=known[1]))  # type: ignore[arg-type]

    def take_up(self, frames: Iterable[bytes | None]) -> None:
        """What the process before this one left open, from the records of topic `alerts` in their order: to approve of a removal the
        controller is started again, and who else should say that it is over?"""
        for frame in frames:
            try:
                name, body = self._codec.decode(frame)
            except Undecodable:
                continue  # raises and resolves nothing
            if name == "AlertRaised" and body["producer"] == self._producer:
                self._open[body["subject"], body["rule"]] = (body["remedy"], body["event_id"])
            elif name == "AlertResolved":
                self._open = {which: known for which, known in self._open.items() if known[1] != body["raised"]}

    def resolve_other_rules(self, subject: str, rule: str) -> None:
        """All of a subject but that of this rule."""
        for raised, known in list(self._open):
            if raised == subject and known != rule:
                self.resolve(subject, known)

    def resolve_others(self, rule: str, subjects: frozenset[str]) -> None:
        """All of a rule but those of these subjects."""
        for subject, raised in list(self._open):
            if raised == rule and subject not in subjects:
                self.resolve(subject, rule)

    def _write(self, fact: AlertRaised | AlertResolved) -> None:
        self._writer.append("alerts", fact.subject.encode(), self._codec.encode(fact), headers_of(fact))
