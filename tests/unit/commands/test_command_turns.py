"""The command processor takes what waits from each tenant in turn, and unknown keys ask the store one question at a time (K28)."""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from access.codes import KEY_UNKNOWN, Refusal
from access.principal import Principal
from commands.http.identify import Identify
from commands.models.aggregate import MODEL
from commands.models.decide import RegisterModel, decide
from commands.processor.aggregates import Aggregates
from commands.processor.command_handler import CommandHandler, PendingCommand
from commands.processor.command_processor import CommandProcessor, Done
from commands.processor.context import CommandContext
from commands.processor.keys_from_store import KeysFromStore
from commands.store.event_store import StoreUnavailable, open_store
from events.facts.fact import KeyId, ModelId, TenantId, UserId
from events.facts.models import Compliance, Registration
from events.process.http_admission import NotAdmitted
from events.process.settings import Settings
from tests.support.todays_codec import todays_codec

COMPLIANCE = Compliance(licence="MIT", data_sources=("uci",), data_level="public")
WAIT_S = 30
CODEC = todays_codec()
numbers = itertools.count()


class Gate:
    """A rule that waits, so that commands gather behind it."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def decide(self, state: Any, command: Any, context: Any) -> Any:
        self.reached.set()
        assert self.opened.wait(WAIT_S)
        return decide(state, command, context)


@pytest.fixture
def processor(tmp_path: Path) -> Iterator[CommandProcessor]:
    store = open_store(Settings(data=tmp_path))
    processor = CommandProcessor(store, CODEC, Aggregates(store, CODEC))
    yield processor
    processor.close()
    store.close()


def registration(tenant: str, rule: Any = decide) -> PendingCommand[Any, Any]:
    name = f"m{next(numbers)}"
    content = Registration(domain="d", team="t", name=name, scenario="s", task="t", compliance=COMPLIANCE)
    command = RegisterModel(ModelId(name), TenantId(tenant), UserId("o"), content)
    principal = Principal(TenantId(tenant), UserId("u"), KeyId("k"), frozenset({"models"}), {}, {})
    context = CommandContext(str(uuid.uuid4()), 1_800_000_000_000_000, UserId("u"), "", "")
    return PendingCommand(CommandHandler[Any, Any](MODEL, rule), name, command, context, principal)


def test_a_command_is_decided_in_the_next_batch_whatever_another_tenant_has_waiting(processor: CommandProcessor) -> None:
    gate = Gate()
    first = processor.submit(registration("loud", gate.decide))
    assert gate.reached.wait(WAIT_S)
    loud = [processor.submit(registration("loud")) for _ in range(200)]
    quiet = processor.submit(registration("quiet"))
    gate.opened.set()
    done = [future.result(WAIT_S) for future in (first, *loud, quiet)]
    positions = [outcome.facts[0].position for outcome in done if isinstance(outcome, Done)]
    assert len(positions) == 202
    assert sorted(positions).index(positions[-1]) == 2, "after the one being decided and one of the other tenant"


def test_a_processor_that_closes_decides_what_waits(processor: CommandProcessor) -> None:
    gate = Gate()
    waiting = [processor.submit(registration("acme", gate.decide)), *(processor.submit(registration("acme")) for _ in range(100))]
    assert gate.reached.wait(WAIT_S)
    closing = threading.Thread(target=processor.close)
    closing.start()
    gate.opened.set()
    assert all(isinstance(future.result(WAIT_S), Done) for future in waiting)
    closing.join(WAIT_S)


class SlowKeys:
    """Keys that become known when the store was asked; it answers when it is told to, or not at all."""

    def __init__(self) -> None:
        self.asked, self.known, self.away = 0, set[bytes](), False
        self.answers = threading.Semaphore(0)

    def recognize(self, authorization: bytes, now: int) -> Principal | Refusal:
        who = Principal(TenantId("acme"), UserId("u"), KeyId("k"), frozenset(), {}, {})
        return who if authorization in self.known else KEY_UNKNOWN

    def catch_up(self) -> None:
        self.asked += 1
        decided = b"new" if self.asked > 1 else b""
        assert self.answers.acquire(timeout=WAIT_S)
        if self.away:
            raise StoreUnavailable("away")
        self.known.add(decided)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_flood_of_unknown_keys_asks_the_store_one_question_at_a_time() -> None:
    async def test() -> None:
        keys = SlowKeys()
        identify = Identify(cast("KeysFromStore", keys))
        first = asyncio.create_task(identify(b"bad"))
        await until(lambda: keys.asked == 1)
        # They came while the store was asked, and may be newer than what it will answer: another question, one for all of them.
        flood = [asyncio.create_task(identify(b"bad")) for _ in range(500)]
        new = asyncio.create_task(identify(b"new"))
        keys.answers.release(3)
        assert isinstance(await new, Principal)
        refusals = await asyncio.gather(first, *flood, return_exceptions=True)
        assert {type(e) for e in refusals} == {NotAdmitted}
        assert keys.asked == 2

    asyncio.run(asyncio.wait_for(test(), WAIT_S))


def test_who_waited_for_a_question_that_failed_asks_again() -> None:
    async def test() -> None:
        keys = SlowKeys()
        identify = Identify(cast("KeysFromStore", keys))
        keys.away = True
        first = asyncio.create_task(identify(b"new"))
        await until(lambda: keys.asked == 1)
        second, third = (asyncio.create_task(identify(b"new")) for _ in range(2))
        for task in (first, second):
            keys.answers.release()
            with pytest.raises(NotAdmitted) as refused:
                await task
            assert refused.value.status == 503
        keys.away = False
        keys.answers.release()
        assert isinstance(await third, Principal)

    asyncio.run(asyncio.wait_for(test(), WAIT_S))
