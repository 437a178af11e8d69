"""Kills processes while calls run: `kill -9` of a Faust worker, the gateway, the relay and Kafka, each by its process id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from infra.launcher import Stack

VICTIMS = ("worker-0", "gateway", "relay", "kafka")


@dataclass
class Chaos:
    """Kills the next victim each time another share of the calls is answered."""

    stack: Stack
    calls: int
    report: Callable[[str], None]
    answered: int = 0
    killed: list[str] = field(default_factory=list[str])

    def on_answer(self) -> None:
        self.answered += 1
        due = len(VICTIMS) * self.answered // (self.calls + 1)
        while len(self.killed) < min(due + 1, len(VICTIMS)) and self.answered >= self.calls // 10:
            victim = VICTIMS[len(self.killed)]
            pid = self.stack.kill9(victim)
            self.killed.append(victim)
            self.report(f"call {self.answered}: kill -9 {victim} (process {pid})")
