"""The command side put together: who may come in, what a request becomes, what it is answered."""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import Request, Response
from pydantic import BaseModel

from commands.http.problems import problem_response, rejected_response
from commands.processor.access import Access, NotRecognised, Principal, admin_secret, needs, sha256_of
from commands.processor.aggregates import Aggregates, Kind, S
from commands.processor.command_processor import Busy, CommandProcessor, Done, PendingCommand
from commands.processor.context import CommandContext
from commands.processor.idempotency_store import Request as Repeatable
from commands.processor.rejection import Rejected
from commands.relay.resume import REMEDY, StoreMismatch, read_tails, resume
from commands.store.event_store import Store, StoreUnavailable, open_store
from commands.store.generation import current_generation
from commands.store.opening import open_generation, open_new_partitions
from events.facts.accounts import Scope
from events.facts.fact import DecidedFact, UserId
from events.log.client import LogUnavailable, Reader
from events.log.schemas import open_codec
from events.process.artifacts import Artifacts
from events.process.clock import now_us
from events.process.problem import Violation
from events.process.settings import Settings
from events.schema.codec import Codec

ANSWER_S_MAX = 30.0
"""Longest a request waits for its decision; a decision takes milliseconds."""
KEY_PATTERN = re.compile(r"^[\x21-\x7e]{1,255}$")
_CORRELATION = re.compile(r"^[\x21-\x7e]{1,128}$")
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$")
RETRY_AFTER = {"Retry-After": "1"}


class Refused(Exception):
    """Carries a finished answer out of a handler."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


@dataclass(frozen=True, slots=True)
class Call:
    """One request by a recognised caller."""

    principal: Principal
    origin: CommandContext
    if_match: int | None
    idempotency_key: str
    secret: str = field(repr=False)
    """The caller's own key, for what may only be shown to its holder. Never kept, never logged."""

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Correlation-Id": self.origin.correlation_id}


class CommandApp:
    """Everything a handler needs. Built once, in `open_command_app`."""

    def __init__(self, settings: Settings, store: Store, codec: Codec, log_id: str, reader: Reader) -> None:
        self.settings, self.store, self.log_id = settings, store, log_id
        self.aggregates = Aggregates(store, codec)
        self.access = Access(store, codec, sha256_of(admin_secret(settings)))
        self.processor = CommandProcessor(store, codec, self.aggregates)
        self.artifacts = Artifacts(settings)
        self._reader, self._reader_lock = reader, threading.Lock()

    def enter(self, request: Request, *scopes: Scope) -> Call:
        """The caller, recognised and allowed. Raises Refused."""
        now = now_us()
        header = request.headers.get("authorization", "")
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise _unauthorised(NotRecognised("key_missing", "no API key was sent"))
        principal = self.access.recognise(secret.strip(), now)
        if isinstance(principal, NotRecognised):
            raise _unauthorised(principal)
        command_id = str(uuid.uuid4())
        key = _idempotency_key(request)
        origin = CommandContext(command_id, now, principal.user, key or command_id, _correlation(request) or command_id)
        lacking = needs(principal, *scopes)
        if lacking is not None:
            raise Refused(rejected_response(lacking))
        return Call(principal, origin, _if_match(request), key, secret.strip())

    def run(
        self,
        call: Call,
        kind: Kind[S],
        key: str,
        decide: Callable[[S, CommandContext], Sequence[DecidedFact] | Rejected],
        *,
        operation: str,
        body: BaseModel | None = None,
        answer: Callable[[S, Sequence[DecidedFact]], dict[str, Any]] | None = None,
        status: int = 200,
        shown_once: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> Response:
        """Decides, waits until it is durable, and answers. `operation` and `body` are what makes two requests the same;
        `shown_once` makes members from the kept answer and the caller's key that are not kept themselves: with another key of
        the same tenant it is another request."""
        repeatable = None
        if call.idempotency_key:
            said = f"{operation} {key}\n{call.if_match}\n{body.model_dump_json() if body else ''}"
            if shown_once is not None:
                said += f"\n{sha256_of(call.secret)}"  # made from the caller's own key, so that only under that key it is the same again
            repeatable = Repeatable(call.principal.tenant, call.idempotency_key, hashlib.sha256(said.encode()).hexdigest())
        task = PendingCommand(kind, key, decide, call.origin, answer or (lambda _state, _facts: {}), call.if_match, repeatable)
        try:
            outcome = self.processor.submit(task).result(ANSWER_S_MAX)
        except (Busy, StoreUnavailable, FutureTimeout) as e:
            raise Refused(
                unavailable("store_unavailable", f"the command could not be decided: {e}", "try again with the same Idempotency-Key")
            ) from e
        if isinstance(outcome, Rejected):
            return rejected_response(outcome, call.headers)
        return _done(outcome, status, call.headers, shown_once(outcome.body) if shown_once else {})

    def ends(self, *topics: str) -> dict[tuple[str, int], int]:
        """The log's ends now. Raises LogUnavailable."""
        with self._reader_lock:
            return self._reader.end_offsets(*topics)

    @contextmanager
    def reading(self) -> Generator[Reader]:
        """The log, for one question at a time. Raises Refused while Kafka is away."""
        try:
            with self._reader_lock:
                yield self._reader
        except LogUnavailable as e:
            raise Refused(unavailable("log_unavailable", str(e), "try again when Kafka is back")) from e

    def close(self) -> None:
        self.processor.close()
        self.store.close()
        self._reader.close()


def open_command_app(settings: Settings) -> CommandApp:
    """Waits for the registry; raises LogMismatch when log and registry are not each other's, StoreMismatch when log and store are
    not: what such a store decided would never reach the log, so nothing may be decided on it."""
    reader = Reader(settings, "commands")
    codec, log_id = open_codec(settings, reader)
    store = open_store(settings)
    epoch, tails = current_generation(store), read_tails(reader)
    if epoch is None and tails:
        raise StoreMismatch(f"the store is empty, but decisions are on the log. {REMEDY}")
    resume(store, epoch or open_generation(store, codec, UserId("commands")), tails)
    open_new_partitions(store, codec, UserId("commands"))
    return CommandApp(settings, store, codec, log_id, reader)


def unavailable(code: str, message: str, remedy: str) -> Response:
    return problem_response(503, [Violation(code, message, "", remedy)], RETRY_AFTER)


def _done(done: Done, status: int, headers: Mapping[str, str], shown_once: Mapping[str, Any]) -> Response:
    facts = [{"name": f.name, "event_id": f.event_id, "version": f.version, "position": f.position} for f in done.facts]
    more = {"Idempotent-Replayed": "true"} if done.replayed else {}
    told = {k: v for k, v in done.body.items() if not k.startswith("_")}
    content = orjson.dumps({**told, **shown_once, "facts": facts})
    return Response(content, status, {**headers, **more, "ETag": f'"{done.version}"'}, "application/json")


def _unauthorised(why: NotRecognised) -> Refused:
    violation = Violation(why.code, why.message, "Authorization", "send 'Authorization: Bearer mm_…' with a working key")
    return Refused(problem_response(401, [violation], {"WWW-Authenticate": "Bearer"}))


def _bad_header(code: str, message: str, field: str, remedy: str) -> Refused:
    return Refused(problem_response(400, [Violation(code, message, field, remedy)]))


def _idempotency_key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if key and not KEY_PATTERN.match(key):
        raise _bad_header(
            "idempotency_key_malformed", "the key is no word of 1 to 255 visible ASCII characters", "Idempotency-Key", "send a UUID"
        )
    return key


def _if_match(request: Request) -> int | None:
    given = request.headers.get("if-match")
    if given is None or given.strip() == "*":
        return None
    text = given.strip().strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise _bad_header("if_match_malformed", "If-Match is no ETag of ours", "If-Match", 'send the ETag you were given, for example "7"')
    return int(text)


def _correlation(request: Request) -> str:
    """The caller's own id, else the trace's (W3C Trace Context), else empty."""
    given = request.headers.get("x-correlation-id", "")
    if _CORRELATION.match(given):
        return given
    trace = _TRACEPARENT.match(request.headers.get("traceparent", ""))
    return trace[1] if trace else ""
