"""The resources of the market itself: tenants and their keys, price books, bills."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from fastapi import APIRouter, Request, Response

from commands.bills import decide as bill
from commands.bills.decide import AlreadyIssued, BillState, CompleteBill, CutOpen, FixCut, NoBills
from commands.http.bodies import Accepted, CompleteBody, CreateTenantBody, IssueKeyBody, NamePath, PartPath, PublishBody
from commands.http.command_app import Call, CommandApp, Refused, unavailable
from commands.http.problems import rejected_response
from commands.prices import decide as price_book
from commands.prices.decide import PublishPriceBook
from commands.processor.access import PLATFORM, SECRET_PREFIX, sha256_of
from commands.processor.aggregates import BILLS, BOOK, TENANT
from commands.processor.rejection import Rejected, invalid, missing
from commands.tenants import decide as tenant
from commands.tenants.decide import ActiveTenant, CreateTenant, IssueApiKey, RevokeApiKey, no_tenant
from events.facts.bills import Cut
from events.facts.fact import BookId, DecidedFact, KeyId, TenantId, UserId
from events.log.client import LogUnavailable
from rating.period import InvalidPeriod, period_bounds
from rating.rules import RATING_VERSION

RESERVED = frozenset({PLATFORM, "-"})


def existing_tenant(app: CommandApp, name: str) -> ActiveTenant:
    """Raises Refused when there is none."""
    state = app.aggregates.load(TENANT, name)
    if not isinstance(state, ActiveTenant):
        raise Refused(rejected_response(no_tenant()))
    return state


def book_currency(app: CommandApp, book: BookId) -> str:
    """Empty when there is no such book."""
    state = app.aggregates.load(BOOK, book)
    return state.currency if isinstance(state, price_book.OpenBook) else ""


class Tenants:
    """Tenants and their API keys."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/tenants", tags=["tenants"])
        routes.post("", status_code=201, responses={201: {"model": Accepted}})(self.create)
        routes.get("/{name}")(self.read)
        routes.post("/{name}/keys", status_code=201, responses={201: {"model": Accepted}})(self.issue_key)
        routes.delete("/{name}/keys/{key_id}", responses={200: {"model": Accepted}})(self.revoke_key)
        return routes

    def create(self, body: CreateTenantBody, request: Request) -> Response:
        """A company that owns models, calls them, or both."""
        call = self._app.enter(request, "admin")
        if body.tenant in RESERVED:
            return rejected_response(
                invalid("tenant_reserved", f"'{body.tenant}' is the market's own", "tenant", "choose another id"), call.headers
            )
        if not _is_zone(body.timezone):
            wrong = invalid(
                "timezone_unknown", f"'{body.timezone}' is no time zone", "timezone", "write an IANA name, for example Asia/Shanghai"
            )
            return rejected_response(wrong, call.headers)
        book = BookId(body.price_book)
        in_book = book_currency(self._app, book)
        command = CreateTenant(TenantId(body.tenant), body.display_name, book, body.currency, body.timezone, in_book)
        return self._app.run(
            call,
            TENANT,
            body.tenant,
            lambda state, origin: tenant.decide(state, command, origin),
            operation="create tenant",
            body=body,
            answer=lambda _state, _facts: {"tenant": body.tenant},
            status=201,
        )

    def read(self, name: NamePath, request: Request) -> Response:
        """The tenant and its working keys, without their secrets."""
        call = self._app.enter(request, "read")
        state = self._app.aggregates.load(TENANT, name)
        if not isinstance(state, ActiveTenant) or not call.principal.acts_for(name):
            return rejected_response(no_tenant(), call.headers)
        said = {
            "tenant": state.tenant,
            "display_name": state.display_name,
            "price_book": state.price_book,
            "currency": state.currency,
            "timezone": state.timezone,
            "keys": [{"key_id": k, "expires_at": end} for k, end in state.keys.items()],
        }
        return Response(orjson.dumps(said), 200, {**call.headers, "ETag": f'"{state.version}"'}, "application/json")

    def issue_key(self, name: NamePath, body: IssueKeyBody, request: Request) -> Response:
        """A new API key. `api_key` is shown here and nowhere else; a repeat with the same Idempotency-Key shows it again.

        To the same caller only: under another admin's key the Idempotency-Key is refused as used."""
        call = self._app.enter(request, "admin")
        key_id, nonce = KeyId(f"k-{uuid.uuid4().hex}"), secrets.token_hex(16)
        user = body.user or f"u-{hashlib.sha256(key_id.encode()).hexdigest()[:16]}"
        command = IssueApiKey(
            key_id,
            sha256_of(_secret_of(call, key_id, nonce)),
            UserId(user),
            body.scopes,
            body.dimensions(),
            body.labels,
            body.expires_at,
        )
        return self._app.run(
            call,
            TENANT,
            name,
            lambda state, origin: tenant.decide(state, command, origin),
            operation="issue key",
            body=body,
            answer=lambda _state, _facts: {
                "tenant": name,
                "key_id": key_id,
                "user": user,
                "scopes": list(body.scopes),
                "expires_at": body.expires_at,
                "_nonce": nonce,
            },
            status=201,
            shown_once=lambda kept: {"api_key": _secret_of(call, kept["key_id"], kept["_nonce"])},
        )

    def revoke_key(self, name: NamePath, key_id: PartPath, request: Request, reason: str = "") -> Response:
        """The key stops working at every gateway within two seconds."""
        call = self._app.enter(request, "admin")
        command = RevokeApiKey(KeyId(key_id), reason[:1000])
        return self._app.run(
            call,
            TENANT,
            name,
            lambda state, origin: tenant.decide(state, command, origin),
            operation=f"revoke {key_id} {reason[:1000]}",
            answer=lambda _state, _facts: {"tenant": name, "key_id": key_id},
        )


class PriceBooks:
    """What things cost, from when on."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/price-books", tags=["prices"])
        routes.post("/{book}/versions", status_code=201, responses={201: {"model": Accepted}})(self.publish)
        return routes

    def publish(self, book: NamePath, body: PublishBody, request: Request) -> Response:
        """Prices from an instant on; never backwards."""
        call = self._app.enter(request, "admin")
        command = PublishPriceBook(BookId(book), body.currency, body.effective_from, tuple(p.fact() for p in body.prices))
        return self._app.run(
            call,
            BOOK,
            book,
            lambda state, origin: price_book.decide(state, command, origin),
            operation="publish",
            body=body,
            answer=_book_answer,
            status=201,
        )


class Bills:
    """Fixing what a bill covers, and issuing it."""

    def __init__(self, app: CommandApp) -> None:
        self._app = app

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1/bills", tags=["bills"])
        routes.get("/{name}")(self.read)
        routes.post("/{name}/{period}/cut", status_code=201, responses={201: {"model": Accepted}})(self.fix_cut)
        routes.post("/{name}/{period}/complete", responses={200: {"model": Accepted}})(self.complete)
        return routes

    def read(self, name: NamePath, request: Request) -> Response:
        """The newest bill of a tenant: fixed or issued. Lines are in the query API."""
        call = self._app.enter(request, "read")
        if not call.principal.acts_for(name):
            return rejected_response(no_tenant(), call.headers)
        state = self._app.aggregates.load(BILLS, name)
        if isinstance(state, NoBills):
            return rejected_response(missing("no_bill", "this tenant has no bill yet", "tenant", "fix a cut first"), call.headers)
        return Response(orjson.dumps(_bill_answer(state, ())), 200, {**call.headers, "ETag": f'"{state.version}"'}, "application/json")

    def fix_cut(self, name: NamePath, period: PartPath, request: Request) -> Response:
        """Fixes what the next bill covers: everything on the log now, up to the period's end or now."""
        call = self._app.enter(request, "admin")
        billed = existing_tenant(self._app, name)
        try:
            start, end = period_bounds(period, billed.timezone)
            ends = self._app.ends("usage", "producers")
        except InvalidPeriod as e:
            return rejected_response(invalid("period_malformed", str(e), "period", "write YYYY-MM or YYYY-MM-DD"), call.headers)
        except LogUnavailable as e:
            raise Refused(unavailable("log_unavailable", str(e), "try again when Kafka is back")) from e
        command = FixCut(
            TenantId(name),
            period,
            start,
            end,
            self._app.log_id,
            tuple(Cut(partition=p, offset=o) for (topic, p), o in sorted(ends.items()) if topic == "usage"),
            self._app.store.last_position(),
            ends["producers", 0],
            RATING_VERSION,
            billed.price_book,
            billed.currency,
            book_currency(self._app, billed.price_book),
        )
        return self._app.run(
            call,
            BILLS,
            name,
            lambda state, origin: _facts(bill.decide(state, command, origin)),
            operation=f"fix {period}",
            answer=_bill_answer,
            status=201,
        )

    def complete(self, name: NamePath, period: PartPath, body: CompleteBody, request: Request) -> Response:
        """The biller's result. The same digest again is fine; another one is 409."""
        call = self._app.enter(request, "admin")
        command = CompleteBill(
            period,
            body.number,
            body.cut_event_id,
            bytes.fromhex(body.digest),
            tuple(line.fact() for line in body.lines),
            body.total_micros,
            body.facts,
            body.producers_open,
            body.excluded,
        )
        return self._app.run(
            call,
            BILLS,
            name,
            lambda state, origin: _facts(bill.decide(state, command, origin)),
            operation=f"complete {period}",
            body=body,
            answer=_bill_answer,
        )


def _facts(decision: bill.Decision) -> Sequence[DecidedFact] | Rejected:
    return () if isinstance(decision, AlreadyIssued) else decision


def _bill_answer(state: BillState, _facts: Sequence[DecidedFact]) -> dict[str, Any]:
    assert not isinstance(state, NoBills)
    cut = state.cut
    said: dict[str, Any] = {
        "tenant": cut.tenant,
        "period": cut.period,
        "number": cut.number,
        "state": state.kind,
        "cut_event_id": cut.event_id,
        "until": cut.until,
        "cuts": {str(c.partition): c.offset for c in cut.cuts},
    }
    return said if isinstance(state, CutOpen) else {**said, "digest": state.digest.hex()}


def _book_answer(state: price_book.BookState, _facts: Sequence[DecidedFact]) -> dict[str, Any]:
    assert isinstance(state, price_book.OpenBook)
    return {"book": state.book, "book_version": state.book_version, "effective_from": state.effective_from, "currency": state.currency}


def _secret_of(call: Call, key_id: str, nonce: str) -> str:
    """Follows from the caller's own secret, which we do not keep, and a nonce kept with the answer: so the same caller is shown
    the same key when a request is repeated, and neither the store nor the log holds anything a key could be made from."""
    made = hmac.new(call.secret.encode(), f"api-key\n{key_id}\n{nonce}".encode(), hashlib.sha256).digest()
    return SECRET_PREFIX + base64.urlsafe_b64encode(made).rstrip(b"=").decode()


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return False
    return bool(name)
