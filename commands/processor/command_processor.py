"""Where commands are decided, one after another, and their facts written down together.

One thread decides: each command sees what the one before it changed. Whatever waits meanwhile is decided with it and committed
in one transaction, so that the disk is flushed once for many commands; of each tenant in turn (K28). If another process was faster anywhere in the group,
nothing of it is written, and each command is loaded and decided again alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from commands.processor.aggregate_kind import S
from commands.processor.aggregates import Aggregates
from commands.processor.command_handler import C, PendingCommand
from commands.processor.idempotency_store import IdempotencyStore, KeptAnswer
from commands.processor.quotas_from_store import QuotasFromStore, quota_mark, quota_originator
from commands.processor.rejection import Rejected, conflict, invalid
from commands.processor.tenant_quota import TenantQuota, TenantShare, quota_after
from commands.store.event_store import Answer, Conflict, Event, Store, StoreUnavailable
from commands.store.stored_record import record_for, unpack
from events.facts.fact import DecidedFact
from events.facts.headers import CE_ID, headers_of
from events.facts.topics import FACTS, key_of
from events.process.fairness.fair_queue import UNWEIGHED, FairQueue, QueueFull
from events.process.problem import Violation
from events.schema.codec import Codec, FrameTooLarge

logger = logging.getLogger(__name__)

WAITING_MAX = 2000
"""Commands that may wait, half of them of one tenant: seconds of work; past it the caller is asked to try again later."""
GROUP_MAX = 64
"""Commands committed together: bounds a transaction, and what a conflict makes us repeat."""
ATTEMPTS_MAX = 5
"""How often a command is decided again when others are faster; then 409."""


@dataclass(frozen=True, slots=True)
class Written:
    """A fact that a command made. `position` is its position in the store."""

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
class _Proposal:
    """What a command will write, if the store takes it: the events of its facts, the mark of the tenant's quota, and the answer that is kept, if
    any. `quota`: the tenant's after the command, by its originator, where the command changed what is taken of it."""

    originator: str
    events: tuple[Event, ...]
    answer: Answer | None
    facts: Sequence[DecidedFact]
    body: Mapping[str, Any]
    state: Any
    quota: Mapping[str, TenantQuota]


_Entry = tuple[PendingCommand[Any, Any], "Future[Outcome]"]
_Decision = _Proposal | Done | Rejected | Exception


class ProcessorBusy(Exception):
    """The command was not taken: too many wait, or the processor has stopped."""


class CommandProcessor:
    """Start it once per process; `submit` from any thread."""

    def __init__(self, store: Store, codec: Codec, aggregates: Aggregates) -> None:
        self._store, self._codec, self._aggregates = store, codec, aggregates
        self._answers = IdempotencyStore(store)
        self.quotas = QuotasFromStore(store, codec)
        self._waiting = FairQueue[_Entry](WAITING_MAX, UNWEIGHED)
        self._changed = threading.Condition()
        """Guards what waits, and whether more may come."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="command-processor", daemon=True)
        self.failed: BaseException | None = None
        self._when_failed: Callable[[], None] = lambda: None
        self._thread.start()

    def submit(self, pending: PendingCommand[S, C]) -> Future[Outcome]:
        """Raises ProcessorBusy. The future raises StoreUnavailable when the database is away."""
        if self.failed is not None:
            raise ProcessorBusy(f"the command processor has stopped: {self.failed}")
        future: Future[Outcome] = Future()
        with self._changed:
            try:
                self._waiting.put(pending.principal.tenant if pending.principal else "", (pending, future), 0)
            except QueueFull as full:
                raise ProcessorBusy(f"{full.items} commands of this tenant wait") from None
            self._changed.notify()
        return future

    def when_failed(self, call: Callable[[], None]) -> None:
        """`call` runs once, in the processor's thread, when no command will be decided any more."""
        self._when_failed = call

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Decides what waits, and no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(10)

    def _run(self) -> None:
        group: list[_Entry] = []
        try:
            while group := self._next_group():
                while group:
                    group = self._decide_group(group)
        except BaseException as e:
            self.failed = e
            logger.exception("the processor stops: no command is decided until the process is started again")
            for _, future in [*group, *self._rest()]:
                if not future.done():
                    future.set_exception(e)
            self._when_failed()

    def _next_group(self) -> list[_Entry]:
        """What waits, one of each tenant in turn; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return [self._waiting.take() for _ in range(min(len(self._waiting), GROUP_MAX))]

    def _rest(self) -> list[_Entry]:
        with self._changed:
            return [self._waiting.take() for _ in range(len(self._waiting))]

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
                _settle(future, self._done(decision, positions) if isinstance(decision, _Proposal) else decision)
        return later

    def _decide_all(self, group: list[_Entry]) -> tuple[list[_Decision | None], list[_Entry]]:
        """One decision per entry, each on the state the ones before it leave; None for those put off."""
        states: dict[str, Any] = {}
        requests: set[str] = set()
        decisions: list[_Decision | None] = []
        later: list[_Entry] = []
        for pending, future in group:
            if pending.request is not None and pending.request.name in requests:
                later.append((pending, future))
                decisions.append(None)
                continue
            try:
                decision = self._decide(pending, states)
            except StoreUnavailable:
                raise
            except Exception as e:
                logger.exception("a rule failed on %s", pending.originator)
                decision = e
            if isinstance(decision, _Proposal):
                states[decision.originator] = decision.state
                states |= decision.quota
                if pending.request is not None:
                    requests.add(pending.request.name)
            decisions.append(decision)
        return decisions, later

    def _decide(self, pending: PendingCommand[Any, Any], states: Mapping[str, Any]) -> _Decision:
        found = self._find_answer(pending)
        if found is not None:
            return found if isinstance(found, Rejected) else self._replay(found)
        originator = pending.originator
        state = states[originator] if originator in states else self._aggregates.load(pending.handler.aggregate, pending.key)
        facts = pending.decide(state)
        rejected = facts if isinstance(facts, Rejected) else None
        if pending.if_match not in (None, state.version) and (rejected is None or rejected.ground != "missing"):
            # A caller who may not see an aggregate gets neither its version nor that it exists.
            rejected = _stale(state.version, pending.if_match)
        if rejected is not None:
            return self._answered_meanwhile(pending) or rejected
        assert not isinstance(facts, Rejected)
        proposal = self._propose(pending, state, facts, states)
        return (self._answered_meanwhile(pending) or proposal) if isinstance(proposal, Rejected) else proposal

    def _propose(
        self, pending: PendingCommand[Any, Any], was: Any, facts: Sequence[DecidedFact], states: Mapping[str, Any]
    ) -> _Proposal | Rejected:
        originator, state, first = pending.originator, was, was.version + 1
        events: list[Event] = []
        for fact in facts:
            try:
                events.append(self._event(originator, fact))
            except FrameTooLarge as e:
                remedy = "shorten texts and lists; put large bodies into the artifact store and name them by digest"
                return invalid("fact_too_large", str(e), "", remedy)
            state = pending.evolve(state, fact)
        within = self._within_quota(pending, was, state, states)
        if isinstance(within, Rejected):
            return within
        quota, marks = within
        events += marks
        body, answer = pending.answer(state), None
        if pending.request is not None:
            kept = KeptAnswer(pending.request.digest, pending.context.now, originator, first, state.version, body)
            answer = kept.stored(pending.request)
        return _Proposal(originator, tuple(events), answer, facts, body, state, quota)

    def _within_quota(
        self, pending: PendingCommand[Any, Any], was: Any, state: Any, states: Mapping[str, Any]
    ) -> tuple[Mapping[str, TenantQuota], list[Event]] | Rejected:
        """The tenant's quota after the command, and the event that holds the command's turn; both empty when it changes nothing there."""
        share = pending.handler.aggregate.share
        after = share(state)
        before = share(was) or (after and TenantShare(after.tenant))
        if after is None or before is None or after == before:
            return {}, []
        originator = quota_originator(after.tenant)
        now: TenantQuota = states[originator] if originator in states else self.quotas.load(after.tenant)
        then = quota_after(now, before, after)
        if isinstance(then, Rejected):
            return then
        marks = [quota_mark(after.tenant, then.version, pending.context.command_id)] if then.version > now.version else []
        return {originator: then}, marks

    def _find_answer(self, pending: PendingCommand[Any, Any]) -> KeptAnswer | Rejected | None:
        return self._answers.find(pending.request, pending.context.now) if pending.request is not None else None

    def _answered_meanwhile(self, pending: PendingCommand[Any, Any]) -> Done | None:
        """Another process may have carried out this very request after we looked for its answer and before we read the state:
        then we would reject now what it did."""
        found = self._find_answer(pending)
        return self._replay(found) if isinstance(found, KeptAnswer) else None

    def _event(self, originator: str, fact: DecidedFact) -> Event:
        name = type(fact).__name__
        record = record_for(FACTS[name].topic, key_of(fact), headers_of(fact), self._codec.encode(fact))
        return Event(originator, fact.version, name, record.pack())

    def _append(self, decisions: Sequence[_Decision | None]) -> dict[tuple[str, int], int] | None:
        """(originator, version) → position; None when another process was faster."""
        proposals = [d for d in decisions if isinstance(d, _Proposal)]
        events, answers = [e for p in proposals for e in p.events], [p.answer for p in proposals if p.answer is not None]
        try:
            positions = self._store.append(events, answers) if events or answers else []
        except Conflict:
            return None
        return {(e.originator, e.version): p for e, p in zip(events, positions, strict=True)}

    def _done(self, proposal: _Proposal, positions: Mapping[tuple[str, int], int]) -> Done:
        self._aggregates.remember(proposal.originator, proposal.state)
        written = (Written(type(f).__name__, f.event_id, f.version, positions[proposal.originator, f.version]) for f in proposal.facts)
        return Done(tuple(written), proposal.state.version, proposal.body)

    def _replay(self, answer: KeptAnswer) -> Done:
        positions = self._store.positions(answer.originator, answer.first, answer.last) if answer.first <= answer.last else []
        events = self._store.events(answer.originator, answer.first - 1, answer.last)
        written = (Written(e.name, unpack(e.state).headers[CE_ID].decode(), e.version, p) for e, p in zip(events, positions, strict=True))
        return Done(tuple(written), answer.last, answer.body, replayed=True)

    # --- when another process was faster

    def _one_by_one(self, group: Sequence[_Entry], decisions: Sequence[_Decision | None]) -> None:
        for entry, decision in zip(group, decisions, strict=True):
            try:
                if isinstance(decision, _Proposal):
                    _settle(entry[1], self._appended_before(decision) or self._alone(entry))
                elif isinstance(decision, Rejected):  # perhaps for what a command before it was to write, and then did not
                    _settle(entry[1], self._alone(entry))
                elif decision is not None:
                    _settle(entry[1], decision)
            except StoreUnavailable as e:
                entry[1].set_exception(e)

    def _appended_before(self, proposal: _Proposal) -> Done | None:
        """Postgres may lose a connection after it committed, and the library sends again: then the conflict is with ourselves."""
        for event in proposal.events:
            there = self._store.events(event.originator, event.version - 1, event.version)
            if not there or there[0].state != event.state:
                return None
        answer = proposal.answer
        if answer is not None and self._store.answer(answer.request) != (answer.at, answer.state):
            return None
        positions = {
            (e.originator, e.version): p for e in proposal.events for p in self._store.positions(e.originator, e.version, e.version)
        }
        return self._done(proposal, positions) if proposal.events or answer is not None else None

    def _alone(self, entry: _Entry) -> Done | Rejected | Exception:
        for _ in range(ATTEMPTS_MAX):
            (decision,), _ = self._decide_all([entry])
            assert decision is not None
            if not isinstance(decision, _Proposal):
                return decision
            positions = self._append([decision])
            if positions is not None:
                return self._done(decision, positions)
        return conflict("contended", f"others changed it {ATTEMPTS_MAX} times meanwhile", "", "try again")


def _stale(version: int, if_match: int | None) -> Rejected:
    message = f"it is at version {version}, not {if_match}"
    return Rejected("stale", (Violation("version_changed", message, "If-Match", "read it again, then decide whether you still want this"),))


def _settle(future: Future[Outcome], outcome: Done | Rejected | Exception) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
