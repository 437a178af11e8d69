"""What somebody should look at. Topic `alerts`, key = subject."""

from __future__ import annotations

from typing import Literal

from events.facts.fact import Fact


class AlertRaised(Fact):
    """Something is wrong with `subject` since now; said once until it is resolved."""

    subject: str
    rule: str
    severity: Literal["info", "warning", "critical"]
    message: str
    remedy: str


class AlertResolved(Fact):
    """It is right again. `raised` is the event_id of the alert."""

    subject: str
    rule: str
    raised: str
