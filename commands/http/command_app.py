"""What every handler needs: identifies and authorizes the caller, has the command decided, and answers."""

from __future__ import annotations

import hashlib
import secrets
import threading
import uuid
from collections.abc import Generator
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import Request, Response
from pydantic import BaseModel

from access.bearer import ENTROPY_BYTES, api_key, digest_of, first_admin_digest, secret_of
from access.codes import Refusal
from access.principal import Principal, require_scope
from commands import PRODUCER
from commands.http.answers import done_answer
from commands.http.headers import correlation_id, idempotency_key, if_match
from commands.http.problem_answers import HttpProblem, access_answer, rejected_answer, unavailable_answer
from commands.processor.aggregate_kind import S
from commands.processor.aggregates import Aggregates
from commands.processor.command_handler import C, CommandHandler, PendingCommand
from commands.processor.command_processor import CommandProcessor, ProcessorBusy
from commands.processor.context import CommandContext
from commands.processor.idempotency_store import RepeatableRequest
from commands.processor.keys_from_store import KeysFromStore
from commands.processor.rejection import Rejected
from commands.relay.resume import REMEDY, OwnRecords, StoreMismatch, read_tails, resume
from commands.store.event_store import Store, StoreUnavailable, open_store
from commands.store.generation import current_generation
from commands.store.opening import open_generation, open_new_partitions
from events.facts.accounts import Scope
from events.facts.fact import UserId
from events.log.chain import is_proof
from events.log.client import LogUnavailable, Reader
from events.log.heartbeat import newest_heartbeats, relay_keys
from events.log.schemas import open_codec
from events.log.sign_in import LogDenied
from events.process.admin_key import admin_key_or_fresh
from events.process.artifacts import Artifacts
from events.process.clock import now_us
from events.process.settings import Settings
from events.schema.codec import Codec

DECISION_S_MAX = 30.0
"""Longest a request waits for its decision; a decision takes milliseconds."""


@dataclass(frozen=True, slots=True)
class AuthorizedCall:
    """One request of a caller who is known and may ask for this. `target` is its method, path and query."""

    principal: Principal
    context: CommandContext
    if_match: int | None
    idempotency_key: str
    target: str
    secret: str = field(repr=False)
    """The caller's own API key, for what may only be shown to its holder. Never kept, never logged."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every answer to this request."""
        return {"X-Correlation-Id": self.context.correlation_id}


class CommandApp:
    """Built once per process, by `open_command_app`."""

    def __init__(self, settings: Settings, store: Store, codec: Codec, log_id: str, reader: Reader) -> None:
        self.settings, self.store, self.codec, self.log_id = settings, store, codec, log_id
        self.aggregates = Aggregates(store, codec)
        secret = admin_key_or_fresh(settings, api_key(secrets.token_bytes(ENTROPY_BYTES)))
        self.keys = KeysFromStore(store, codec, first_admin_digest(secret))
        self.processor = CommandProcessor(store, codec, self.aggregates)
        self.artifacts = Artifacts(settings)
        self._reader, self._reader_lock = reader, threading.Lock()
        self._ends, self._ends_lock = Reader(settings, f"{PRODUCER}-ends"), threading.Lock()

    def authorize(self, request: Request, scope: Scope, *others: Scope) -> AuthorizedCall:
        """Identifies the caller, who must have one of the scopes. Raises HttpProblem."""
        now, header = now_us(), request.headers.get("authorization", "").encode("latin-1")
        principal, secret = self.keys.authenticate(header, now), secret_of(header)
        if isinstance(principal, Refusal):
            raise HttpProblem(access_answer(principal))
        assert isinstance(secret, bytes), "the header held a key"
        command_id, key = str(uuid.uuid4()), idempotency_key(request)
        context = CommandContext(command_id, now, principal.user, key or command_id, correlation_id(request) or command_id)
        lacking = require_scope(principal, scope, *others)
        if lacking is not None:
            raise HttpProblem(access_answer(lacking))
        target = f"{request.method} {request.url.path}?{request.url.query}"
        return AuthorizedCall(principal, context, if_match(request), key, target, secret.decode())

    def run(self, call: AuthorizedCall, handler: CommandHandler[S, C], key: str, command: C, body: BaseModel | None = None) -> Response:
        """Waits until the command is decided and durable, and answers. `key` names the aggregate. Raises HttpProblem."""
        pending = PendingCommand(
            handler,
            key,
            command,
            call.context,
            call.principal,
            call.if_match,
            _repeatable(call, body, revealing=handler.reveal is not None),
        )
        try:
            outcome = self.processor.submit(pending).result(DECISION_S_MAX)
        except (ProcessorBusy, StoreUnavailable, FutureTimeout) as e:
            message = f"the command could not be decided: {e}"
            raise HttpProblem(unavailable_answer("store_unavailable", message, "try again with the same Idempotency-Key")) from e
        if isinstance(outcome, Rejected):
            return rejected_answer(outcome, call.headers)
        revealed = handler.reveal(outcome.body, call.secret) if handler.reveal is not None else {}
        return done_answer(call.headers, 201 if handler.created else 200, outcome, revealed)

    @contextmanager
    def log_reader(self) -> Generator[Reader]:
        """The log, for one question at a time, of ten seconds at most. Raises HttpProblem while Kafka is away."""
        with _while_log_is_there(), self._reader_lock:
            yield self._reader

    def log_ends(self, *topics: str) -> dict[tuple[str, int], int]:
        """The next offset of each partition. Waits for no reading of records. Raises HttpProblem while Kafka is away."""
        with _while_log_is_there(), self._ends_lock:
            return self._ends.end_offsets(*topics)

    def close(self) -> None:
        self.processor.close()
        self.store.close()
        self._reader.close()
        self._ends.close()


@contextmanager
def _while_log_is_there() -> Generator[None]:
    try:
        yield
    except (LogUnavailable, LogDenied) as e:
        raise HttpProblem(unavailable_answer("log_unavailable", str(e), "try again when Kafka is back")) from e


def open_command_app(settings: Settings) -> CommandApp:
    """Waits for the registry. Raises LogMismatch when log and registry do not belong together, and StoreMismatch when log and store do
    not: what such a store decided would never reach the log, so nothing may be decided on it."""
    reader = Reader(settings, PRODUCER)
    codec, log_id = open_codec(settings, reader)
    store = open_store(settings)
    generation, keys = current_generation(store), relay_keys(settings)
    if generation is not None:
        seen = newest_heartbeats(reader)
        own = OwnRecords(store, generation, keys, seen[0].heartbeat if seen else None)
        resume(own, read_tails(reader, own.is_newest))
    elif any(is_proof(tail, keys) for tails in read_tails(reader, lambda tail: is_proof(tail, keys)).values() for tail in tails):
        raise StoreMismatch(f"the store is empty, but decisions are on the log. {REMEDY}")
    else:
        open_generation(store, codec, UserId(PRODUCER))
    open_new_partitions(store, codec, UserId(PRODUCER))
    app = CommandApp(settings, store, codec, log_id, reader)
    app.processor.quotas.catch_up()
    return app


def _repeatable(call: AuthorizedCall, body: BaseModel | None, *, revealing: bool) -> RepeatableRequest | None:
    """What makes two requests the same. What is revealed is made from the caller's own key: under another key it is another request."""
    if not call.idempotency_key:
        return None
    text = f"{call.target}\n{call.if_match}\n{body.model_dump_json() if body else ''}"
    if revealing:
        text += f"\n{digest_of(call.secret.encode()).hex()}"
    return RepeatableRequest(call.principal.tenant, call.idempotency_key, hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())
