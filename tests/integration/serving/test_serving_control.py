"""How the edge begins and ends: what Ray gave up on is tried again, epochs are closed, callers who left pay nothing (K12, K13, K18)."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from events.facts import deployments
from events.facts.fact import TenantId
from events.facts.topics import FACTS
from events.log.client import Reader, Writer
from events.process.artifacts import Artifacts
from events.process.settings import Settings
from events.schema.examples import example_of
from examples.digits_model import TECHNICAL, write_digits, write_slow_digits
from infra.launcher import raynode
from infra.launcher.jvm import java, kafka_classpath
from infra.launcher.ports import free_block
from infra.launcher.supervision import settings_environment
from projections.bills.bill_from_log import epochs_ended
from serving.control.controller import DRAIN_S, Controller
from serving.control.serve_rest import ServeRest
from tests.support.gateway_stack import (
    PIXELS,
    SECRET,
    GatewayStack,
    M,
    apps,
    beside,
    check_answers,
    check_chains,
    rest_of,
    running_gateway,
)
from tests.support.polling import eventually
from tests.support.usage_oracle import read_topic

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayStack]:
    folder = tmp_path_factory.mktemp("control")
    with free_block() as base_port, running_gateway(Settings(stack="control", base_port=base_port, data=folder), folder) as running:
        yield running


def facts(edge: GatewayStack, topic: str) -> list[tuple[str, dict[str, Any]]]:
    return [edge.facts.codec.decode(record.value) for record in read_topic(edge.settings, topic)]


def closed(edge: GatewayStack) -> dict[str, dict[str, int]]:
    """Epoch → the last sequence of each tenant, as its producer said at the end."""
    return {body["epoch"]: body["last"] for name, body in facts(edge, "producers") if name == "ProducerClosed"}


def written(edge: GatewayStack) -> dict[str, dict[str, int]]:
    """Epoch → the last sequence of each tenant that is on the log."""
    last: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for _, body, _ in edge.usage():
        last[body["epoch"]][body["tenant"]] = max(body["sequence"], last[body["epoch"]].get(body["tenant"], 0))
    return dict(last)


def opened(edge: GatewayStack) -> list[str]:
    return [body["epoch"] for name, body in facts(edge, "producers") if name == "ProducerOpened"]


def newest_epoch(edge: GatewayStack) -> str:
    return opened(edge)[-1]


POINTS = 20
KILLED: set[str] = set()
"""Epochs that ended by kill -9: nobody closes them."""


def disconnect(edge: GatewayStack, port: int, after_s: float) -> None:
    """Sends a whole call and goes away before its answer."""
    body = httpx.Request("POST", "http://x", json={"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": PIXELS}]})
    content = body.read()
    head = f"POST /v2/models/{M}/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((edge.settings.host, port)) as connection:
        connection.sendall(head.encode() + content)
        time.sleep(after_s)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)


@pytest.mark.parametrize("door", [raynode.FALLBACK_HTTP, 0], ids=["through-the-proxy-of-serve", "straight"])
def test_a_caller_who_leaves_before_the_answer_is_one_execution_that_nobody_is_billed_for(edge: GatewayStack, door: int) -> None:
    """Before HAProxy knows the gateway, calls come through Serve's own proxy, which cancels them when their caller leaves."""

    def aborted() -> list[dict[str, Any]]:
        return [body for _, body, _ in edge.usage() if body.get("outcome") == "aborted"]

    before = len(aborted())
    (replica,) = edge.pids("ServeReplica:model-vision-core-digits-v1.0.0")
    os.kill(replica, signal.SIGSTOP)  # so that the answer takes as long as this test likes
    try:
        disconnect(edge, edge.settings.port(door), 0.5)
        time.sleep(1.5)  # nobody outside sees when the news of it has come to the gateway
    finally:
        os.kill(replica, signal.SIGCONT)
    eventually(lambda: len(aborted()) > before, "the execution is on the log", 20)
    assert edge.infer().status_code == 200
    (fact,) = aborted()[before:]
    assert (fact["status"], fact["error_code"], fact["calls"], fact["bytes_out"]) == (499, "caller_disconnected", 1, 0)
    assert fact["cpu_us"] > 0 and fact["replica"] and fact["latency_us"] > 500_000
    assert not any(body.get("error_code") == "caller_disconnected" for _, body, _ in edge.usage() if body["_name"] == "InvocationRefused")
    check_chains(edge.usage())


def test_a_version_whose_artifact_was_away_is_started_again_without_anybodys_help(edge: GatewayStack) -> None:
    other = "model-vision-core-late"
    edge.facts.model(other, "acme")
    digest = edge.facts.version(other, "acme", "1.0.0", write_digits(edge.settings.folder / "late.onnx", 3.0), TECHNICAL)
    file = next(path for path in (edge.settings.folder / "artifacts").rglob("*") if path.is_file() and digest.split(":")[1] in str(path))
    away = file.with_name("away")
    file.rename(away)
    edge.facts.deploy(other, "acme", "1.0.0", digest)

    def failed() -> bool:
        said = [body for name, body in facts(edge, "deployments") if name == "VersionFailed" and body["model"] == other]
        return bool(said) and said[-1]["error_code"] == "artifact_missing"

    eventually(failed, "the failure is told", 90)
    away.rename(file)
    assert Artifacts(edge.settings).read(TenantId("acme"), digest)
    eventually(lambda: edge.infer(other).status_code == 200, "it is tried again and answers", 60)
    rest = rest_of(edge)
    try:
        args = rest.status().applied.apps[f"{other}-v1.0.0"]["args"]
    finally:
        rest.close()
    assert args["attempt"] == 2


def test_a_call_that_takes_longer_than_its_version_stays_is_answered(edge: GatewayStack) -> None:
    """A replica that is taken away finishes what it has, as long as its version's calls may take (K17)."""
    slow, url = "model-vision-core-slow", f"{edge.settings.gateway}/v2/models/model-vision-core-slow/infer"
    edge.facts.model(slow, "acme")
    digest = edge.facts.version(slow, "acme", "1.0.0", write_slow_digits(edge.settings.folder / "slow.onnx"), TECHNICAL)
    edge.facts.deploy(slow, "acme", "1.0.0", digest, timeout_us=90_000_000)
    eventually(lambda: edge.infer(slow).status_code == 200, "it is loaded", 60)

    def call(work: float) -> httpx.Response:
        pixels = [work] + [0.0] * 63
        body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": pixels}]}
        return edge.client.post(url, json=body, headers={"Authorization": f"Bearer {SECRET}"}, timeout=100)

    began = time.monotonic()
    assert call(500).status_code == 200
    with ThreadPoolExecutor(1) as caller:
        calling = caller.submit(call, 500 * (DRAIN_S + 20) / (time.monotonic() - began))  # a brief drain is over by then
        time.sleep(0.5)
        edge.facts.write(deployments.VersionUndeployed, model=slow, model_version="1.0.0", reason="test", by="owner")
        eventually(lambda: edge.infer(slow).status_code == 404, "others are turned away", 20)
        answer = calling.result(100)
    assert answer.status_code == 200
    check_answers(edge, [answer])
    eventually(lambda: f"{slow}-v1.0.0" not in apps(edge), "and then it leaves", 60)


def test_a_gateway_that_is_replaced_says_what_its_last_facts_were(edge: GatewayStack) -> None:
    edge.infer_many(40)
    old = newest_epoch(edge)
    rest = rest_of(edge)
    try:
        apps = dict(rest.status().applied.apps)
        gateway = apps.pop("gateway")
        again = gateway | {"args": gateway["args"] | {"attempt": 2}}  # what the controller does with one that failed
        options = {"host": edge.settings.host, "port": edge.settings.gateway_port}
        rest.apply({"proxy_location": "EveryNode", "http_options": options, "applications": [again, *apps.values()]})
    finally:
        rest.close()
    eventually(lambda: old in closed(edge), "the old gateway closes its epoch", 60)
    assert closed(edge)[old] == written(edge)[old]
    eventually(lambda: newest_epoch(edge) != old and edge.infer().status_code == 200, "the new one answers", 30)


@contextmanager
def standalone_gateway(edge: GatewayStack) -> Generator[tuple[subprocess.Popen[bytes], Callable[[], httpx.Response]]]:
    """A gateway process of its own, ready, and one call to it."""
    settings = edge.settings.model_copy(update={"ray_address": f"{edge.settings.host}:{edge.settings.port(raynode.GCS)}"})
    environment = os.environ | raynode.environment(settings, edge.stack.places) | settings_environment(settings)
    url = f"http://{settings.host}:{settings.standalone_gateway_port}"
    body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": PIXELS}]}

    def call() -> httpx.Response:
        return edge.client.post(f"{url}/v2/models/{M}/infer", json=body, headers={"Authorization": f"Bearer {SECRET}"}, timeout=20)

    with (edge.settings.folder / "standalone.log").open("ab") as log:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "serving.hosting.gateway_standalone"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            eventually(lambda: edge.client.get(f"{url}/v2/health/ready").status_code == 200, "it is ready", 60)
            yield gateway, call
        finally:
            gateway.kill()
            gateway.wait(10)


def test_a_standalone_gateway_answers_with_a_receipt_and_closes_its_epoch(edge: GatewayStack) -> None:
    with standalone_gateway(edge) as (gateway, call):
        answers = [call() for _ in range(10)]
        assert [a.status_code for a in answers] == [200] * 10
        epoch = answers[0].headers["modelmarket-epoch"]
        assert epoch not in closed(edge)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(30) == 0
    assert closed(edge)[epoch] == written(edge)[epoch] == {"caller": 10}


@pytest.mark.timeout(600)
def test_killed_at_twenty_points_of_its_calls_a_gateway_leaves_no_answer_without_its_fact(edge: GatewayStack) -> None:
    chance, answers, before = random.Random(12), list[httpx.Response](), set(opened(edge))

    def until_it_dies(call: Callable[[], httpx.Response]) -> list[httpx.Response]:
        heard = list[httpx.Response]()
        while True:
            try:
                heard.append(call())
            except httpx.TransportError:  # what came only in part is no answer
                return heard

    for _ in range(POINTS):
        with standalone_gateway(edge) as (gateway, call), ThreadPoolExecutor(8) as callers:
            calling = [callers.submit(until_it_dies, call) for _ in range(8)]
            time.sleep(chance.uniform(0.02, 0.5))
            gateway.kill()
            answers += [answer for one in calling for answer in one.result(30) if answer.status_code == 200]
    KILLED.update(set(opened(edge)) - before)
    epochs = {answer.headers["modelmarket-epoch"] for answer in answers}
    assert len(answers) > 100 and len(epochs) > 10
    check_answers(edge, answers)
    assert not epochs & closed(edge).keys()


@contextmanager
def throttled(edge: GatewayStack, client_id: str, bytes_per_s: int) -> Generator[None]:
    """A quota of Kafka's own on what a client may read."""

    def configure(*what: str) -> None:
        tool = [java(), "-Xmx128m", "-cp", kafka_classpath(), "kafka.admin.ConfigCommand", "--bootstrap-server", edge.settings.kafka]
        entity = ["--alter", *what, "--entity-type", "clients", "--entity-name", client_id]
        subprocess.run([*tool, *entity], check=True, capture_output=True, timeout=60)

    configure("--add-config", f"consumer_byte_rate={bytes_per_s}")
    try:
        yield
    finally:
        configure("--delete-config", "consumer_byte_rate")


def test_a_controller_on_a_throttled_log_writes_nothing_until_it_has_read_all_that_was_there(
    edge: GatewayStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = "model-vision-core-new"
    edge.stack.supervisor.stop("controller")
    eventually(lambda: not edge.pids("serving.control.controller"), "the stack's own controller is gone", 20)
    before = apps(edge)
    edge.facts.model(new, "acme")
    edge.facts.deploy(new, "acme", "1.0.0", edge.facts.version(new, "acme", "1.0.0", write_digits(tmp_path / "new.onnx", 4.0), TECHNICAL))
    writer, frame = Writer(edge.settings, "test"), edge.facts.codec.encode(example_of(FACTS["RouteApplied"]))
    for n in range(12_000):  # three megabytes behind the facts that matter
        writer.append("deployments", b"m", frame, {"ce_type": b"RouteApplied", "ce_id": bytes(100)}, n % 4)
    assert writer.flush(30)
    reader = Reader(edge.settings, "test")
    ends = reader.end_offsets("models", "deployments")
    reader.close()

    controller = Controller(beside(edge, edge.settings, tmp_path))
    applied: list[bool] = []
    send = ServeRest.apply

    def watched(rest: ServeRest, config: dict[str, Any]) -> None:
        lanes = controller._fold_runner._lanes  # pyright: ignore
        applied.append(all(lanes[tp].next_offset >= end for tp, end in ends.items()))
        send(rest, config)

    monkeypatch.setattr(ServeRest, "apply", watched)
    thread = threading.Thread(target=controller.run)
    with throttled(edge, "follow-controller", 100_000):
        thread.start()
        try:
            eventually(lambda: controller.health()["detail"] == "folding the log", "it folds", 20)
            slow_until = time.monotonic() + 8
            while time.monotonic() < slow_until:
                assert (controller.health()["detail"], controller.health()["position"], applied) == ("folding the log", 0, [])
                assert apps(edge) == before and edge.infer().status_code == 200
                time.sleep(0.2)
            eventually(lambda: f"{new}-v1.0.0" in apps(edge), "then it applies what is new", 120)
            assert apps(edge) == before | {f"{new}-v1.0.0"} and all(applied)
        finally:
            controller.stop()
            thread.join(20)
            writer.close()
    assert not thread.is_alive()
    edge.stack.supervisor.start("controller")
    eventually(lambda: edge.infer(new).status_code == 200, "the stack's own controller goes on with it", 60)


def test_ray_is_started_again_with_its_gateways_epochs_closed_and_its_models_loaded(edge: GatewayStack) -> None:
    last = edge.infer_many(20)[0].headers["modelmarket-epoch"]
    edge.stack.restart("ray")
    assert closed(edge)[last] == written(edge)[last]
    assert {part.name for part in edge.stack.status() if part.healthy} >= {"ray", "controller", "gateway"}
    eventually(lambda: edge.infer().status_code == 200, "the model is loaded again", 30)


def test_when_the_stack_goes_down_every_epoch_is_closed_and_a_bill_says_so(edge: GatewayStack) -> None:
    """The last test here: afterwards only the log is there."""
    last = edge.infer_many(20)[0].headers["modelmarket-epoch"]
    edge.facts.close()
    edge.stack.down()
    edge.stack.up({"kafka", "registry"})
    assert closed(edge)[last] == written(edge)[last]
    reader = Reader(edge.settings, "test")
    try:
        (end,) = reader.end_offsets("producers").values()
        ended = epochs_ended(reader, edge.facts.codec, end)
    finally:
        reader.close()
    assert set(written(edge)) - KILLED <= ended, "a bill over all of it has no open producer but those that were killed"
