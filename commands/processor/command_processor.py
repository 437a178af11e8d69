"""Where commands are decided, one after another, and their facts written down together.

One thread decides: each command sees what the one before it changed. Whatever waits meanwhile is decided with it and committed
in one transaction, so that the disk is flushed once for many commands. If another process was faster anywhere in the group,
nothing of it is written, and each command is loaded and decided again alone.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic

from commands.processor.aggregates import Aggregates, Kind, S
from commands.processor.context import CommandContext
from commands.processor.idempotency_store import Answer, IdempotencyStore, Request
from commands.processor.rejection import Rejected, conflict, invalid
from commands.store.event_store import Conflict, Event, Store, StoreUnavailable
from commands.store.stored_record import placed, unpack
from events.facts.fact import DecidedFact
from events.facts.topics import FACTS, key_of
from events.log.headers import CE_ID, headers_of
from events.process.problem import Violation
from events.schema.codec import Codec, FrameTooLarge

logger = logging.getLogger(__name__)

WAITING_MAX = 1000
"""Commands that may wait: seconds of work; past it the caller is told to come back."""
GROUP_MAX = 64
"""Commands committed together: bounds a transaction, and what a conflict makes us repeat."""
ATTEMPTS_MAX = 5
"""How often a command is decided again when others are faster; then 409."""


@dataclass(frozen=True, slots=True)
class Written:
    """A fact that a command made. `position` is its place in the store's order."""

    name: str
    event_id: str
    version: int
    position: int


@dataclass(frozen=True, slots=True)
class Done:
    """The command happened, now or (`replayed`) when it came the first time. `version` is the aggregate's, its ETag."""

    facts: tuple[Written, ...]
    version: int
    body: Mapping[str, Any]
    replayed: bool = False


Outcome = Done | Rejected


@dataclass(frozen=True, slots=True)
class PendingCommand(Generic[S]):
    """One command on its way. `decide` may give no facts at all: then nothing is written and all is well.
    `answer` makes the body of the answer from the new state and the facts; it must hold nothing secret (it is kept); members
    whose names begin with '_' are kept and not told."""

    kind: Kind[S]
    key: str
    decide: Callable[[S, CommandContext], Sequence[DecidedFact] | Rejected]
    origin: CommandContext
    answer: Callable[[S, Sequence[DecidedFact]], dict[str, Any]]
    if_match: int | None = None
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a task will write, if the store takes it. The answer's event, if one is kept, comes after the facts'."""

    originator: str
    events: tuple[Event, ...]
    facts: Sequence[DecidedFact]
    body: Mapping[str, Any]
    state: Any


_Entry = tuple[PendingCommand[Any], "Future[Outcome]"]
_Decision = _Draft | Done | Rejected | Exception


class Busy(Exception):
    """Too many commands wait; nothing was taken."""


class CommandProcessor:
    """Start it once per process; `submit` from any thread."""

    def __init__(self, store: Store, codec: Codec, aggregates: Aggregates) -> None:
        self._store, self._codec, self._aggregates = store, codec, aggregates
        self._answers = IdempotencyStore(store)
        self._queue: queue.Queue[tuple[PendingCommand[Any], Future[Outcome]] | None] = queue.Queue(WAITING_MAX)
        self._thread = threading.Thread(target=self._run, name="processor", daemon=True)
        self.failed: BaseException | None = None
        self._when_failed: Callable[[], None] = lambda: None
        self._thread.start()

    def submit(self, task: PendingCommand[S]) -> Future[Outcome]:
        """Raises Busy. The future raises StoreUnavailable when the database is away."""
        if self.failed is not None:
            raise Busy(f"the processor has stopped: {self.failed}")
        future: Future[Outcome] = Future()
        try:
            self._queue.put_nowait((task, future))
        except queue.Full:
            raise Busy(f"{WAITING_MAX} commands wait") from None
        return future

    def when_failed(self, call: Callable[[], None]) -> None:
        """`call` runs once, in the processor's thread, when no command will be decided any more."""
        self._when_failed = call

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        group: list[_Entry] = []
        try:
            while True:
                entry = self._queue.get()
                if entry is None:
                    return
                group = [entry, *self._more()]
                while group:
                    group = self._decide_group(group)
        except BaseException as e:
            self.failed = e
            logger.exception("the processor stops: no command is decided until the process is started again")
            for _, future in [*group, *self._more()]:
                if not future.done():
                    future.set_exception(e)
            self._when_failed()

    def _more(self) -> list[_Entry]:
        found: list[_Entry] = []
        while len(found) < GROUP_MAX - 1 and not self._queue.empty():
            entry = self._queue.get()
            if entry is None:
                self._queue.put(None)  # the end, again for the next round
                break
            found.append(entry)
        return found

    def _decide_group(self, group: list[_Entry]) -> list[_Entry]:
        """Settles every future of the group, but for those returned: they repeat a request that is in this very group."""
        try:
            decisions, later = self._decide_all(group)
            positions = self._append(decisions)
        except StoreUnavailable as e:
            for _, future in group:
                future.set_exception(e)
            return []
        if positions is None:
            self._one_by_one(group, decisions)
            return later
        for (_, future), decision in zip(group, decisions, strict=True):
            if decision is not None:
                _settle(future, self._done(decision, positions) if isinstance(decision, _Draft) else decision)
        return later

    def _decide_all(self, group: list[_Entry]) -> tuple[list[_Decision | None], list[_Entry]]:
        """One decision per entry, each on the state the ones before it leave; None for those put off."""
        states: dict[str, Any] = {}
        requests: set[str] = set()
        decisions: list[_Decision | None] = []
        later: list[_Entry] = []
        for task, future in group:
            if task.request is not None and task.request.originator in requests:
                later.append((task, future))
                decisions.append(None)
                continue
            try:
                decision = self._decide(task, states)
            except StoreUnavailable:
                raise
            except Exception as e:
                logger.exception("a rule failed on %s %s", task.kind.name, task.key)
                decision = e
            if isinstance(decision, _Draft):
                states[decision.originator] = decision.state
                if task.request is not None:
                    requests.add(task.request.originator)
            decisions.append(decision)
        return decisions, later

    def _decide(self, task: PendingCommand[Any], states: Mapping[str, Any]) -> _Decision:
        found = self._answers.find(task.request, task.origin.now) if task.request is not None else (None, 0)
        if isinstance(found, Rejected):
            return found
        answer, answer_version = found
        if answer is not None:
            return self._replay(answer)
        originator = task.kind.originator(task.key)
        state = states[originator] if originator in states else self._aggregates.load(task.kind, task.key)
        if task.if_match is not None and task.if_match != state.version:
            meanwhile = self._answered_meanwhile(task)
            if meanwhile is not None:
                return meanwhile
            hidden = task.decide(state, task.origin)
            if isinstance(hidden, Rejected) and hidden.ground == "missing":
                return hidden  # whoever may not see it does not learn its version, nor that it is there
            message = f"it is at version {state.version}, not {task.if_match}"
            return Rejected(
                "stale", (Violation("version_changed", message, "If-Match", "read it again, then decide whether you still want this"),)
            )
        facts = task.decide(state, task.origin)
        if isinstance(facts, Rejected):
            return self._answered_meanwhile(task) or facts
        events: list[Event] = []
        first = state.version + 1
        for fact in facts:
            try:
                events.append(self._event(originator, fact))
            except FrameTooLarge as e:
                return invalid(
                    "fact_too_large",
                    str(e),
                    "",
                    "shorten texts and lists; put large bodies into the artifact store and name them by digest",
                )
            state = task.kind.evolve(state, fact)
        body = task.answer(state, facts)
        if task.request is not None:
            kept = Answer(task.request.digest, task.origin.now, originator, first, state.version, body)
            events.append(kept.to_event(task.request, answer_version))
        return _Draft(originator, tuple(events), facts, body, state)

    def _answered_meanwhile(self, task: PendingCommand[Any]) -> Done | None:
        """Another process may have carried out this very request after we looked for its answer and before we read the state:
        what we would refuse now is what it did."""
        found = self._answers.find(task.request, task.origin.now) if task.request is not None else (None, 0)
        if isinstance(found, Rejected) or found[0] is None:
            return None
        return self._replay(found[0])

    def _event(self, originator: str, fact: DecidedFact) -> Event:
        name = type(fact).__name__
        envelope = placed(FACTS[name].topic, key_of(fact), headers_of(fact), self._codec.encode(fact))
        return Event(originator, fact.version, name, envelope.pack())

    def _append(self, decisions: Sequence[_Decision | None]) -> dict[tuple[str, int], int] | None:
        """(originator, version) → position; None when somebody else was faster."""
        events = [e for d in decisions if isinstance(d, _Draft) for e in d.events]
        try:
            positions = self._store.append(events) if events else []
        except Conflict:
            return None
        return {(e.originator, e.version): p for e, p in zip(events, positions, strict=True)}

    def _done(self, draft: _Draft, positions: Mapping[tuple[str, int], int]) -> Done:
        self._aggregates.remember(draft.originator, draft.state)
        written = (Written(type(f).__name__, f.event_id, f.version, positions[draft.originator, f.version]) for f in draft.facts)
        return Done(tuple(written), draft.state.version, draft.body)

    def _replay(self, answer: Answer) -> Done:
        positions = self._store.positions(answer.originator, answer.first, answer.last) if answer.first <= answer.last else []
        events = self._store.events(answer.originator, answer.first - 1)[: len(positions)]
        written = (Written(e.name, unpack(e.state).headers[CE_ID].decode(), e.version, p) for e, p in zip(events, positions, strict=True))
        return Done(tuple(written), answer.last, answer.body, replayed=True)

    # --- when somebody else was faster

    def _one_by_one(self, group: Sequence[_Entry], decisions: Sequence[_Decision | None]) -> None:
        for entry, decision in zip(group, decisions, strict=True):
            try:
                if isinstance(decision, _Draft):
                    _settle(entry[1], self._landed(decision) or self._alone(entry))
                elif decision is not None:
                    _settle(entry[1], decision)
            except StoreUnavailable as e:
                entry[1].set_exception(e)

    def _landed(self, draft: _Draft) -> Done | None:
        """Postgres may lose a connection after it committed, and the library sends again: then the conflict is with ourselves."""
        for event in draft.events:
            there = self._store.events(event.originator, event.version - 1)[:1]
            if not there or there[0].state != event.state:
                return None
        places = {(e.originator, e.version): p for e in draft.events for p in self._store.positions(e.originator, e.version, e.version)}
        return self._done(draft, places) if draft.events else None

    def _alone(self, entry: _Entry) -> Done | Rejected | Exception:
        for _ in range(ATTEMPTS_MAX):
            (decision,), _ = self._decide_all([entry])
            assert decision is not None
            if not isinstance(decision, _Draft):
                return decision
            positions = self._append([decision])
            if positions is not None:
                return self._done(decision, positions)
        return conflict("contended", f"others changed it {ATTEMPTS_MAX} times meanwhile", "", "try again")


def _settle(future: Future[Outcome], outcome: Done | Rejected | Exception) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
