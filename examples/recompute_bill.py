"""Recomputes a bill from Kafka by the rules of `docs/billing.md` and imports nothing of this project but the file
beside it, which reads the log. For auditors, and to be copied.

    python -m examples.recompute_bill BROKER TENANT NUMBER SETUP_KEYS RELAY_KEYS MARKET_KEYS [ROLE PASSWORD_FILE]

The keys are public ones in hex, with commas between; a local stack has them in `keys/setup.pub`, `relay.pub` and `market.pub` of its data folder. ROLE signs in at
Kafka (SASL/PLAIN) with the password in the file; without it nobody does. Prints the total and the digest of the issued bill beside those it
computed; ends with 1 where they differ.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from examples.stranger_log import Body, Log, LogInvalid, Record, is_proven, partition_of

METERS = [
    "calls",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "bytes_in",
    "bytes_out",
    "images",
    "media_us",
    "gpu_us",
    "cpu_us",
]
KEY = ["model", "model_version", "provider", "meter", "book_version", "amount_per_micros", "per_units", "held"]
COUNTS = ["claimed", "carried", "copied", "conflicting", "duplicate", "voided", "unbilled", "held", "retimed", "missing"]
PINS = ["tenant", "period", "number", "log_id", "until", "decided_position", "rating_version", "price_book", "currency", "producers_offset"]
USAGE = {"InvocationSettled", "InvocationOpened", "InvocationAbandoned", "InvocationRefused", "InvocationVoided"}
UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
DAY_US, WEEK_US, FIVE_MINUTES_US = 86_400_000_000, 7 * 86_400_000_000, 300_000_000


class Held:
    """Which of a tenant's records are no proven part of an epoch's chain, or came with a key that was not the tenant's then; and which of them
    two people decided to count."""

    def __init__(self, log: Log, tenant: str, partition: int) -> None:
        asked, self.counted = dict[str, Body](), dict[tuple[int, bytes], int]()
        for name, body, position, _ in log.decided("bills"):
            if name == "RecordSetDecisionRequested":
                asked[body["record_set"]] = body
            elif name == "RecordSetDecided" and body["decision"] == "count":
                for r in asked[body["record_set"]]["records"]:
                    if r["partition"] == partition:
                        self.counted[r["offset"], r["sha256"]] = min(position, self.counted.get((r["offset"], r["sha256"]), position))
        self.opened, self.terms = log.opened_epochs(), dict[str, list[int | None]]()
        for name, body, _, _ in log.decided("accounts"):
            if body.get("tenant") == tenant and name == "ApiKeyIssued":
                self.terms[body["key_id"]] = [body["occurred_at"], body["expires_at"]]
            elif body.get("tenant") == tenant and name == "ApiKeyRevoked":
                over = self.terms[body["key_id"]][1]
                self.terms[body["key_id"]][1] = body["occurred_at"] if over is None else min(over, body["occurred_at"])

    def of(self, known: list[tuple[Record, str, Body]]) -> tuple[set[int], set[int]]:
        """(offsets held, offsets whose sequence is taken) of the records below one cut, which come in the order of the log."""
        held, taken = set[int](), set[int]()
        heads = defaultdict[str, tuple[int, bytes]](lambda: (0, bytes(32)))
        waiting = defaultdict[tuple[str, bytes], list[tuple[Record, Body]]](list)
        for record, _, body in known:
            epoch = body["epoch"]
            if record.key != body["tenant"].encode() or epoch not in self.opened or not is_proven(record, epoch, *self.opened[epoch]):
                held.add(record.offset)
            elif body["sequence"] <= heads[epoch][0]:
                taken.add(record.offset)
            elif (body["sequence"], body["previous_sha256"]) != (heads[epoch][0] + 1, heads[epoch][1]):
                waiting[epoch, body["previous_sha256"]].append((record, body))
                held.add(record.offset)
            else:
                following = [(record, body)]
                while following:
                    counts, *copies = following
                    heads[epoch] = counts[1]["sequence"], hashlib.sha256(counts[0].value).digest()
                    taken |= {copy.offset for copy, _ in copies}
                    held -= {r.offset for r, _ in following}
                    following = waiting.pop((epoch, heads[epoch][1]), [])
        return held | {r.offset for r, name, b in known if name == "InvocationSettled" and not self.is_own_key(r, b)}, taken

    def decided(self, known: list[tuple[Record, str, Body]], position: int) -> set[int]:
        """Offsets of those that were decided up to a position of the store."""
        hashes = ((r.offset, hashlib.sha256(r.value).digest()) for r, _, _ in known)
        return {at for at, sha256 in hashes if self.counted.get((at, sha256), position + 1) <= position}

    def is_own_key(self, record: Record, body: Body) -> bool:
        since, over = self.terms.get(body["key_id"], (None, None))
        began = effective_us(record, body) - body["latency_us"]
        return since is not None and since - FIVE_MINUTES_US <= began and (over is None or began <= over + FIVE_MINUTES_US)


def effective_us(record: Record, body: Body) -> int:
    own, append = body["occurred_at"], record.append_us
    return own if append - WEEK_US <= own <= append + FIVE_MINUTES_US else append


class Statement:
    """What a tenant owes for the records below a cut, before an instant."""

    def __init__(
        self,
        records: list[tuple[Record, str, Body]],
        held_of: Held,
        cut: Body,
        excluded: set[int],
        price: Callable[[int, Body, str], tuple[int, ...]],
    ) -> None:
        self.quantities, self.counts = defaultdict[tuple[Any, ...], int](int), dict.fromkeys(COUNTS, 0)
        ends = {c["partition"]: c["offset"] for c in cut["cuts"]}
        known = [(r, name, b) for r, name, b in records if r.offset < ends.get(r.partition, 0) and r.offset not in excluded]
        held, taken = held_of.of(known)
        decided = held_of.decided(known, cut["decided_position"])
        voided = {b["voided"] for r, name, b in known if name == "InvocationVoided" and r.offset not in (held | taken) - decided}
        proven = {r.value for r, _, _ in known if r.offset not in held | taken}
        seen, billed, epochs = dict[str, bytes](), defaultdict[bytes, list[int]](list), dict[str, list[int]]()
        for record, name, body in known:
            if record.offset not in decided and (record.offset in held or (record.offset in taken and record.value not in proven)):
                self.counts["held"] += 1
                continue
            if (first := seen.setdefault(body["event_id"], record.value)) is not record.value:
                self.counts["copied" if first == record.value else "conflicting"] += 1
                continue
            epochs.setdefault(body["epoch"], []).append(body["sequence"])
            effective = effective_us(record, body)
            if name != "InvocationSettled" or body["outcome"] != "succeeded" or body["shadow"]:
                self.counts["unbilled"] += 1
            elif body["event_id"] in voided:
                self.counts["voided"] += 1
            elif (key := body["invocation_key"]) and any(abs(effective - at) < DAY_US for at in billed[key]):
                self.counts["duplicate"] += 1
            else:
                billed[key].append(effective)
                self.counts["retimed"] += effective != body["occurred_at"]
                self.counts["claimed" if effective < cut["until"] else "carried"] += 1
                if effective < cut["until"]:
                    for meter in METERS:
                        if quantity := body.get(meter, 1 if meter == "calls" else 0):
                            self.quantities[
                                body["model"], body["model_version"], body["provider"], meter, *price(effective, body, meter)
                            ] += quantity
        self.epochs = set(epochs)
        self.counts["missing"] = sum(max(0, max(sequences) - len(sequences)) for sequences in epochs.values())

    def amount(self, key: tuple[Any, ...]) -> int:
        *_, amount, units, _ = key
        return (2 * self.quantities.get(key, 0) * amount + units) // (2 * units)


def price_in(versions: list[Body]) -> Callable[[int, Body, str], tuple[int, ...]]:
    """(book_version, amount, units, held) of a meter of a usage fact at an instant."""

    def price(effective: int, usage: Body, meter: str) -> tuple[int, ...]:
        begun = [v for v in versions if v["effective_from"] <= effective]
        if not begun:
            return 0, 0, 1, True
        version = max(begun, key=lambda v: (v["effective_from"], v["book_version"]))
        prices = {(p["model"], p["meter"]): p for p in version["prices"]}
        found = prices.get((usage["model"], meter)) or prices.get(("*", meter))
        return (
            (version["book_version"], found["amount_micros"], found["per_units"], False) if found else (version["book_version"], 0, 1, True)
        )

    return price


def recompute(log: Log, tenant: str, number: int) -> tuple[Body, Body]:
    """(the body of the issued bill, the bill as computed here)."""
    cuts, issued = dict[int, Body](), dict[int, Body]()
    for name, body, _, _ in log.decided("bills"):
        if body.get("tenant") == tenant and name in ("BillCutFixed", "BillIssued"):
            (cuts if name == "BillCutFixed" else issued)[body["number"]] = body
    if number not in issued:
        raise LogInvalid(f"bill {number} of {tenant} is not issued; there are {sorted(issued)}")
    excluded = {n: set(issued[n]["excluded"]) if n in issued else set[int]() for n in (number - 1, number)}
    partition = partition_of(tenant.encode(), log.partitions("usage"))
    end = max(c["offset"] for n in excluded if n in cuts for c in cuts[n]["cuts"] if c["partition"] == partition)
    records = usage_of(log, tenant, partition, end, excluded[number] | excluded[number - 1])
    held = Held(log, tenant, partition)
    publications = [(b, position) for name, b, position, _ in log.decided("prices") if name == "PriceBookPublished"]

    def statement(n: int) -> Statement:
        cut: Body = cuts[n] if n else {"cuts": [], "until": 0, "price_book": "", "decided_position": 0}
        versions = [b for b, position in publications if b["book"] == cut["price_book"] and position <= cut["decided_position"]]
        return Statement(records, held, cut, excluded[n], price_in(versions))

    now, before = statement(number), statement(number - 1)
    bill = bill_of(cuts[number], now, before) | {"producers_open": len(now.epochs - epochs_ended(log, cuts[number]["producers_offset"]))}
    if excluded[number]:
        bill |= {"records_written_off": len(excluded[number]), "excluded": sorted(excluded[number])}
    return issued[number], bill


def usage_of(log: Log, tenant: str, partition: int, end: int, excluded: set[int]) -> list[tuple[Record, str, Body]]:
    """The tenant's records below an offset, in the order of the log."""
    found = list[tuple[Record, str, Body]]()
    for record in log.read("usage", partition, end):
        try:
            name, body = log.fact(record)
            check_usage(name, body)
        except Exception as e:
            if record.offset in excluded or record.key != tenant.encode():
                continue
            raise LogInvalid(f"usage/{partition}/{record.offset} cannot be read, and no bill excludes it: {e}") from e
        if body["tenant"] == tenant:
            found.append((record, name, body))
    return found


def check_usage(name: str, body: Body) -> None:
    """What is no usage is as unreadable as garbage."""
    if name not in USAGE or not UUID.fullmatch(body["event_id"]):
        raise ValueError(f"{name} is no usage")
    if any(value < 0 for field, value in body.items() if isinstance(value, int) and field != "occurred_at"):
        raise ValueError("a count is negative")


def epochs_ended(log: Log, below: int) -> set[str]:
    """The producer epochs that were closed or given up below an offset of topic `producers`."""
    decided = log.decided("producers")
    ended = {str(body["epoch"]) for name, body, _, record in decided if name == "ProducerWrittenOff" and record.offset < below}
    for record in log.read("producers", 0, below):
        try:
            name, body = log.fact(record)
        except Exception:  # unreadable bytes end no epoch
            continue
        if name == "ProducerClosed":
            ended.add(str(body["epoch"]))
    return ended


def bill_of(cut: Body, now: Statement, before: Statement) -> Body:
    """The difference of two statements, and what the cut pins."""
    lines = list[Body]()
    for key in sorted(now.quantities.keys() | before.quantities.keys()):
        quantity, amount = now.quantities.get(key, 0) - before.quantities.get(key, 0), now.amount(key) - before.amount(key)
        if quantity or amount:
            lines.append(dict(zip(KEY, key, strict=True)) | {"quantity": quantity, "amount_micros": amount})
    return {name: cut[name] for name in PINS} | {
        "cut_event_id": cut["event_id"],
        "cuts": sorted([c["partition"], c["offset"]] for c in cut["cuts"]),
        "previous_bill_sha256": cut["previous_bill_sha256"].hex(),
        "lines": lines,
        "total_micros": sum(line["amount_micros"] for line in lines),
        "facts": now.counts | {"claimed": now.counts["claimed"] - before.counts["claimed"]},
    }


def main(broker: str, tenant: str, number: str, *keys_and_sign_in: str) -> int:
    issued, bill = recompute(Log(broker, *keys_and_sign_in), tenant, int(number))
    canonical = json.dumps(bill, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    print(f"issued   {issued['total_micros']} micro-{issued['currency']}  {issued['digest'].hex()}")
    print(f"computed {bill['total_micros']} micro-{bill['currency']}  {digest}")
    return 0 if digest == issued["digest"].hex() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:9]))
