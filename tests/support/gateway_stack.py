"""A running gateway for tests, on Kafka, registry, Ray and controller of its own; an oracle reads its usage facts from Kafka."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from cli.prepare import prepare_log
from events.process.settings import Settings
from events.process.signing_keys import SIGNERS
from examples.decided_facts import DecidedFactWriter
from examples.digits_model import TECHNICAL, write_digits
from infra.launcher import Stack
from infra.launcher.processes import command_of, marked
from serving.control.serve_rest import ServeRest
from tests.support.polling import eventually
from tests.support.stacks import reached_from_elsewhere, running_stack
from tests.support.usage_oracle import Schemas, decoded, read_topic

M = "model-vision-core-digits"
V1 = f"{M}-v1.0.0"
SECRET = "mm_a-callers-key"
GATEWAY, LISTENER = "serving.hosting.gateway_process", "serving.hosting.listener"
"""In the command of a gateway process, and of the process that starts it."""
STALENESS_S_MAX = 12.0
"""Short, so that a test sees the bound."""
PIXELS = [float(n) for n in range(64)]


@dataclass
class GatewayStack:
    stack: Stack
    facts: DecidedFactWriter
    digests: dict[str, str]
    client: httpx.Client

    @property
    def settings(self) -> Settings:
        return self.stack.settings

    def infer(self, model: str = M, *, secret: str = SECRET, timeout_s: float = 20, **headers: str) -> httpx.Response:
        body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": PIXELS}]}
        auth = {"Authorization": f"Bearer {secret}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self.client.post(f"{self.settings.gateway}/v2/models/{model}/infer", json=body, headers=auth, timeout=timeout_s)

    def infer_many(self, calls: int, at_once: int = 16) -> list[httpx.Response]:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda _: self.infer(), range(calls)))

    @contextmanager
    def calling(self, callers: int = 1, timeout_s: float = 20) -> Generator[list[httpx.Response]]:
        """So many callers, each with its next call after its last answer; the answers so far. All have ended when the context has."""
        stop, answers = threading.Event(), list[httpx.Response]()

        def call() -> None:
            while not stop.is_set():
                answers.append(self.infer(timeout_s=timeout_s))

        with ThreadPoolExecutor(callers) as pool:
            ended = [pool.submit(call) for _ in range(callers)]
            try:
                yield answers
            finally:
                stop.set()
        for one in ended:
            one.result()

    def pids(self, title: str) -> list[int]:
        return [pid for pid in marked(self.stack.paths.mark) if title in command_of(pid)]

    def kill(self, title: str) -> int:
        """kill -9 of the one process with this in its command line."""
        found = self.pids(title)
        assert found, f"no process {title}"
        os.kill(found[0], signal.SIGKILL)
        return found[0]

    def usage(self) -> list[tuple[str, dict[str, Any], bytes]]:
        """(receipt, body, raw value) of every record of `usage`, read and decoded with nothing of ours."""
        found: list[tuple[str, dict[str, Any], bytes]] = []
        for record in read_topic(self.settings, "usage"):
            fact = decoded(record.value, self.schemas)
            assert fact is not None and record.value is not None, f"usage/{record.partition}/{record.offset} is no usage fact"
            found.append((f"usage/{record.partition}/{record.offset}", fact[1] | {"_name": fact[0]}, record.value))
        return found

    @cached_property
    def schemas(self) -> Schemas:
        return Schemas(self.settings)


def facts(gateway: GatewayStack, topic: str) -> list[tuple[str, dict[str, Any]]]:
    return [gateway.facts.codec.decode(record.value) for record in read_topic(gateway.settings, topic)]


def closed(gateway: GatewayStack) -> dict[str, dict[str, int]]:
    """Epoch → the last sequence of each tenant, as its producer said at the end."""
    return {body["epoch"]: body["last"] for name, body in facts(gateway, "producers") if name == "ProducerClosed"}


def written(gateway: GatewayStack) -> dict[str, dict[str, int]]:
    """Epoch → the last sequence of each tenant that is on the log."""
    last: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for _, body, _ in gateway.usage():
        last[body["epoch"]][body["tenant"]] = max(body["sequence"], last[body["epoch"]].get(body["tenant"], 0))
    return dict(last)


def opened(gateway: GatewayStack) -> list[str]:
    return [body["epoch"] for name, body in facts(gateway, "producers") if name == "ProducerOpened"]


def newest_epoch(gateway: GatewayStack) -> str:
    return opened(gateway)[-1]


def check_chains(records: list[tuple[str, dict[str, Any], bytes]]) -> None:
    """Every producer's chain per tenant: 1, 2, 3 …, each naming the hash of the one before (K13). Independent of the code that wrote it."""
    last: dict[tuple[str, str], tuple[int, bytes]] = {}
    for receipt, body, value in records:
        chain = (body["epoch"], body["tenant"])
        sequence, previous = last.get(chain, (0, bytes(32)))
        assert body["sequence"] == sequence + 1, f"{receipt}: after {sequence} comes {body['sequence']}"
        assert body["previous_sha256"] == previous, receipt
        last[chain] = (body["sequence"], hashlib.sha256(value).digest())


def check_answers(gateway: GatewayStack, answers: list[httpx.Response]) -> None:
    """Each completed answer has exactly one settled fact, where its receipt says, with the bytes it says."""
    records = gateway.usage()
    check_chains(records)
    by_receipt = {receipt: (body, value) for receipt, body, value in records}
    seen: set[str] = set()
    for answer in answers:
        body, value = by_receipt[answer.headers["modelmarket-receipt"]]
        assert hashlib.sha256(value).hexdigest() == answer.headers["modelmarket-sha256"]
        assert body["event_id"] == answer.headers["modelmarket-event-id"] and body["outcome"] == "succeeded"
        assert body["model_version"] == answer.headers["modelmarket-model-version"]
        seen.add(body["event_id"])
    assert len(seen) == len(answers)


def serve_rest(gateway: GatewayStack) -> ServeRest:
    token = gateway.stack.paths.ray_token.read_text().strip()
    return ServeRest(gateway.settings.model_copy(update={"ray_auth_token": type(gateway.settings.ray_auth_token)(token)}))


def apps(gateway: GatewayStack) -> set[str]:
    rest = serve_rest(gateway)
    try:
        return set(rest.status().applied.apps)
    finally:
        rest.close()


def settings_of_another_log(gateway: GatewayStack, other: Settings, folder: Path) -> Settings:
    """Settings of a controller that would write to the gateway's Ray, but reads another log."""
    token = gateway.stack.paths.ray_token.read_text().strip()
    signers = {f"{signer}_public_keys": (other.folder / "keys" / f"{signer}.pub").read_text().strip() for signer in SIGNERS}
    change: dict[str, Any] = {
        **signers,
        **reached_from_elsewhere(other, "controller"),
        "stack": other.stack,
        "registry_url": other.registry,
        "data": folder,
        "ray_dashboard_url": gateway.settings.ray_dashboard,
        "ray_auth_token": token,
        "base_port": gateway.settings.base_port,
        "artifacts_url": gateway.settings.artifacts,
    }
    return Settings(**change)


@contextmanager
def running_gateway(folder: Path, **settings: Any) -> Generator[GatewayStack]:
    """One model with two versions, the first of them deployed, and a key that may call it."""
    with running_stack(folder, {"kafka", "registry", "ray", "signer"}, name="gateway", **settings) as stack:
        prepare_log(stack.settings)
        facts = DecidedFactWriter(stack.settings)
        for tenant in ("acme", "caller"):
            facts.tenant(tenant)
        dimensions: dict[str, Any] = {"sub_account": "lab-7", "department": "research", "team": "vision", "project": "digits"}
        facts.key("caller", SECRET, labels={"purpose": "test"}, **dimensions)
        facts.model(M, "acme")
        digests = {
            version: facts.version(M, "acme", version, write_digits(folder / f"{version}.onnx", bias), TECHNICAL)
            for version, bias in (("1.0.0", 1.0), ("1.1.0", 2.0))
        }
        facts.deploy(M, "acme", "1.0.0", digests["1.0.0"], timeout_us=60_000_000)  # a replica's start on a busy machine
        stack.up({"controller", "gateway"})
        with httpx.Client(limits=httpx.Limits(max_connections=100)) as client:
            gateway = GatewayStack(stack, facts, digests, client)
            eventually(lambda: gateway.infer().status_code == 200, "the first model answers", 180)
            yield gateway
        facts.close()
