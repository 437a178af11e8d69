"""Requests of one tenant run a few at a time, whatever it sends, and another tenant's next request is the next to run (K28)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from events.process.fairness import turns as turns_module
from events.process.fairness.turns import NoTurn, TurnBounds, Turns

ALL = TurnBounds(running_max=8, alone_max=4, shared_max=2, waiting_max=8, wait_s_max=60)


class Work:
    """Requests that run until they are told to end."""

    def __init__(self, bounds: TurnBounds = ALL) -> None:
        self.turns = Turns(bounds)
        self.began: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, *names: str) -> None:
        """`acme-1` is of tenant acme. Returns when each runs or waits."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._run(name))
        await settled()

    async def _run(self, name: str) -> None:
        tenant = name.split("-", maxsplit=1)[0]
        await self.turns.take(tenant)
        self.began.append(name)
        try:
            await self._ends[name].wait()
        finally:
            self.turns.give_back(tenant)

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await settled()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settled()

    def task(self, name: str) -> asyncio.Task[None]:
        return self._tasks[name]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def many(tenant: str, count: int) -> list[str]:
    return [f"{tenant}-{n}" for n in range(1, count + 1)]


def test_another_tenants_request_runs_at_once_beside_a_tenant_with_many() -> None:
    async def test() -> None:
        work = Work()
        await work.ask(*many("loud", 8))
        assert work.began == many("loud", 4)
        await work.ask("quiet-1")
        assert work.began == [*many("loud", 4), "quiet-1"]

    run(test)


def test_beside_others_a_tenant_has_few_running_and_alone_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(turns_module.time, "monotonic", lambda: now)

    async def test() -> None:
        nonlocal now
        work = Work()
        await work.ask("quiet-1", *many("loud", 6))
        assert work.turns.running("loud") == 2
        await work.end("quiet-1")
        assert work.turns.running("loud") == 2, "another tenant asked a moment ago"
        await work.ask("quiet-2")
        now += turns_module.ALONE_AFTER_S
        await work.end("loud-1")
        assert work.turns.running("loud") == 2, "another tenant has one running"
        await work.end("quiet-2")
        assert work.turns.running("loud") == 4
        await work.ask("quiet-3")
        await work.end("loud-2", "loud-3")
        assert (work.turns.running("loud"), work.turns.waiting) == (2, 1)

    run(test)


def test_who_waits_takes_turns_whoever_waits_longest() -> None:
    async def test() -> None:
        work = Work(TurnBounds(running_max=2, alone_max=1, shared_max=1, waiting_max=100, wait_s_max=60))
        await work.ask("loud-1", "other-1", *(f"loud-{n}" for n in range(2, 6)), "other-2", "quiet-1")
        assert work.began == ["loud-1", "other-1"]
        await work.end("loud-1", "loud-2", "quiet-1")
        assert work.began[2:] == ["loud-2", "quiet-1", "loud-3"]
        await work.end("other-1")
        assert work.began[-1] == "other-2"

    run(test)


def test_a_tenant_has_as_many_as_are_still_free_and_who_has_none_comes_first() -> None:
    async def test() -> None:
        work = Work(TurnBounds(running_max=8, alone_max=7, shared_max=7, waiting_max=100, wait_s_max=60))
        for tenant in "abcde":
            await work.ask(*many(tenant, 8))
        assert [work.turns.running(tenant) for tenant in "abcde"] == [4, 2, 1, 1, 0]
        await work.end("a-1")
        assert [work.turns.running(tenant) for tenant in "abcde"] == [3, 2, 1, 1, 1]

    run(test)


def test_a_tenant_whose_requests_wait_is_refused_more_and_others_are_not() -> None:
    async def test() -> None:
        work = Work()
        await work.ask(*many("loud", 4 + 4))
        with pytest.raises(NoTurn, match="4 requests of your tenant wait"):
            await work.turns.take("loud")
        await work.ask("quiet-1", "quiet-2", "quiet-3")
        assert (work.turns.running("quiet"), work.turns.waiting) == (2, 5)

    run(test)


def test_a_request_waits_for_its_turn_only_so_long() -> None:
    async def test() -> None:
        work = Work(TurnBounds(running_max=2, alone_max=1, shared_max=1, waiting_max=8, wait_s_max=0.05))
        await work.ask("loud-1", "loud-2")
        with pytest.raises(NoTurn, match=r"for 0\.05 s"):
            await work.task("loud-2")
        await work.end("loud-1")
        assert (work.turns.running("loud"), work.turns.waiting, work.began) == (0, 0, ["loud-1"])

    run(test)


def test_a_cancelled_request_takes_no_turn_with_it() -> None:
    async def test() -> None:
        work = Work(TurnBounds(running_max=2, alone_max=1, shared_max=1, waiting_max=8, wait_s_max=60))
        await work.ask(*many("loud", 5))
        await work.cancel("loud-2")
        assert work.turns.waiting == 3
        work.task("loud-3").cancel()  # in the very turn of the loop in which its turn comes
        work.turns.give_back("loud")
        await settled()
        work.turns._begin("loud")  # pyright: ignore[reportPrivateUsage]  (loud-1 runs on)
        assert work.began == ["loud-1", "loud-4"]
        work.task("loud-5").cancel()
        await work.end("loud-1", "loud-4")
        assert (work.turns.running("loud"), work.turns.waiting) == (0, 0)

    run(test)


def test_a_turn_that_came_and_was_cancelled_at_once_is_given_on() -> None:
    async def test() -> None:
        work = Work(TurnBounds(running_max=2, alone_max=1, shared_max=1, waiting_max=8, wait_s_max=60))
        await work.turns.take("loud")
        await work.ask("loud-1", "loud-2")
        work.turns.give_back("loud")
        work.task("loud-1").cancel()  # its turn has come, and it has not noticed yet
        await settled()
        assert (work.began, work.turns.running("loud")) == (["loud-2"], 1)

    run(test)
