"""Start and stop of the gateway: failed applications start again, epochs are closed, disconnected callers pay nothing (K12, K13, K18)."""

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
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from events.facts import deployments
from events.facts.fact import TenantId
from events.facts.topics import FACTS
from events.log.client import Reader, Writer
from events.process.artifacts import Artifacts
from events.process.passwords import SET_UP
from events.schema.examples import example_of
from examples.digits_model import TECHNICAL, write_digits, write_slow_digits
from infra.launcher import LaunchFailed, raynode
from infra.launcher.jvm import java, kafka_classpath, tools_properties
from infra.launcher.part_secrets import kafka_role
from infra.launcher.processes import command_of, parent_of
from infra.launcher.supervision import settings_environment
from projections.bills.decided_for_bills import epochs_ended
from serving.control.controller import DRAIN_S, Controller
from serving.control.serve_rest import ServeRest
from tests.support.gateway_stack import (
    PIXELS,
    SECRET,
    GatewayStack,
    M,
    apps,
    check_answers,
    check_chains,
    serve_rest,
    settings_of_another_log,
)
from tests.support.polling import eventually
from tests.support.usage_oracle import read_topic

ROOT = Path(__file__).resolve().parents[3]


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


KILLED: set[str] = set()
"""Epochs that ended by kill -9: nobody closes them."""


@pytest.fixture(scope="module", autouse=True)
def before(gateway: GatewayStack) -> set[str]:
    """Epochs of earlier tests, which killed gateways, too."""
    return set(opened(gateway))


def test_processes_that_run_models_hold_no_secret_of_the_command_side(gateway: GatewayStack) -> None:
    admin_key = gateway.stack.environment()["MODELMARKET_ADMIN_KEY"]
    assert len(admin_key) > 20
    running = gateway.pids("ray::ServeReplica:")
    assert running
    for pid in running:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert not any(admin_key.encode() in variable for variable in environment)
        assert b"MODELMARKET_ADMIN_KEY=" in environment


def disconnect(gateway: GatewayStack, port: int, after_s: float) -> None:
    """Sends a whole call and goes away before its answer."""
    body = httpx.Request("POST", "http://x", json={"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": PIXELS}]})
    content = body.read()
    head = f"POST /v2/models/{M}/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((gateway.settings.host, port)) as connection:
        connection.sendall(head.encode() + content)
        time.sleep(after_s)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)


@pytest.mark.parametrize("port_offset", [raynode.FALLBACK_HTTP, 0], ids=["through-the-proxy-of-serve", "straight"])
def test_a_caller_who_leaves_before_the_answer_is_one_execution_that_nobody_is_billed_for(gateway: GatewayStack, port_offset: int) -> None:
    """Before HAProxy knows the gateway, calls come through Serve's own proxy, which cancels them when their caller leaves."""

    def aborted() -> list[dict[str, Any]]:
        return [body for _, body, _ in gateway.usage() if body.get("outcome") == "aborted"]

    before, url = len(aborted()), f"http://{gateway.settings.host}:{gateway.settings.port(port_offset)}"
    eventually(lambda: httpx.get(f"{url}/healthz").is_success, "the way to the gateway is there: Serve's own proxy begins last")
    (replica,) = eventually(lambda: gateway.pids("ServeReplica:model-vision-core-digits-v1.0.0"), "the test before left a replica")
    for arrived_s, left_s in ((0.5, 1.5), (3, 6)):  # neither the call's arrival nor that of its end can be seen from outside
        os.kill(replica, signal.SIGSTOP)  # so that the answer takes as long as this test likes
        try:
            disconnect(gateway, gateway.settings.port(port_offset), arrived_s)
            time.sleep(left_s)
        finally:
            os.kill(replica, signal.SIGCONT)
        eventually(lambda: gateway.infer().status_code == 200, "the call behind it is answered: what it wrote is on the log", 180)
        if len(aborted()) > before:
            break
    (fact,) = aborted()[before:]
    assert (fact["status"], fact["error_code"], fact["calls"], fact["bytes_out"]) == (499, "caller_disconnected", 1, 0)
    assert fact["cpu_us"] > 0 and fact["replica"] and fact["latency_us"] > 500_000
    assert not any(
        body.get("error_code") == "caller_disconnected" for _, body, _ in gateway.usage() if body["_name"] == "InvocationRefused"
    )
    check_chains(gateway.usage())


def test_a_version_whose_artifact_was_unavailable_is_started_again_automatically(gateway: GatewayStack) -> None:
    other = "model-vision-core-late"
    gateway.facts.model(other, "acme")
    digest = gateway.facts.version(other, "acme", "1.0.0", write_digits(gateway.settings.folder / "late.onnx", 3.0), TECHNICAL)
    file = next(path for path in (gateway.settings.folder / "artifacts").rglob("*") if path.is_file() and digest.split(":")[1] in str(path))
    away = file.with_name("away")
    file.rename(away)
    gateway.facts.deploy(other, "acme", "1.0.0", digest)

    def failed() -> bool:
        failures = [body for name, body in facts(gateway, "deployments") if name == "VersionFailed" and body["model"] == other]
        return bool(failures) and failures[-1]["error_code"] == "artifact_missing"

    eventually(failed, "the failure is on the log", 180)
    away.rename(file)
    assert Artifacts(gateway.settings).read(TenantId("acme"), digest)
    eventually(lambda: gateway.infer(other).status_code == 200, "it is tried again and answers", 180)
    rest = serve_rest(gateway)
    try:
        args = rest.status().applied.apps[f"{other}-v1.0.0"]["args"]
    finally:
        rest.close()
    assert args["attempt"] == 2


def used_cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_a_call_that_takes_longer_than_its_version_stays_is_answered(gateway: GatewayStack) -> None:
    """A replica that is taken away finishes what it has, as long as its version's calls may take (K17)."""
    slow, url = "model-vision-core-slow", f"{gateway.settings.gateway}/v2/models/model-vision-core-slow/infer"
    gateway.facts.model(slow, "acme")
    digest = gateway.facts.version(slow, "acme", "1.0.0", write_slow_digits(gateway.settings.folder / "slow.onnx"), TECHNICAL)
    gateway.facts.deploy(slow, "acme", "1.0.0", digest, timeout_us=90_000_000)
    eventually(lambda: gateway.infer(slow).status_code == 200, "it is loaded", 180)

    def call(work: float) -> httpx.Response:
        pixels = [work] + [0.0] * 63
        body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": pixels}]}
        return gateway.client.post(url, json=body, headers={"Authorization": f"Bearer {SECRET}"}, timeout=280)

    began = time.monotonic()
    assert call(500).status_code == 200
    (replica,) = gateway.pids(f"ServeReplica:{slow}-v1.0.0")
    idle_s = used_cpu_s(replica)
    with ThreadPoolExecutor(1) as caller:
        calling = caller.submit(call, 500 * (DRAIN_S + 20) / (time.monotonic() - began))  # a brief drain is over by then
        eventually(lambda: used_cpu_s(replica) > idle_s + 0.5, "the replica is at work on it")
        gateway.facts.write(deployments.VersionUndeployed, model=slow, model_version="1.0.0", reason="test", by="owner")
        eventually(lambda: gateway.infer(slow).status_code == 404, "others are turned away", 180)
        answer = calling.result(300)
    assert answer.status_code == 200
    check_answers(gateway, [answer])
    eventually(lambda: f"{slow}-v1.0.0" not in apps(gateway), "and then it leaves", 180)


def test_a_replaced_gateway_closes_its_epoch_with_its_last_sequences(gateway: GatewayStack) -> None:
    gateway.infer_many(40)
    old = newest_epoch(gateway)
    rest = serve_rest(gateway)
    try:
        apps = dict(rest.status().applied.apps)
        running = apps.pop("gateway")
        again = running | {"args": running["args"] | {"attempt": 2}}  # what the controller does with one that failed
        options = {"host": gateway.settings.host, "port": gateway.settings.gateway_port}
        rest.apply({"proxy_location": "EveryNode", "http_options": options, "applications": [again, *apps.values()]})
    finally:
        rest.close()
    eventually(lambda: old in closed(gateway), "the old gateway closes its epoch", 180)
    assert closed(gateway)[old] == written(gateway)[old]
    eventually(lambda: newest_epoch(gateway) != old and gateway.infer().status_code == 200, "the new one answers", 180)


@contextmanager
def standalone_gateway(gateway: GatewayStack) -> Generator[tuple[subprocess.Popen[bytes], Callable[[], httpx.Response]]]:
    """A gateway process of its own, ready, and one call to it."""
    settings = gateway.settings.model_copy(update={"ray_address": f"{gateway.settings.host}:{gateway.settings.port(raynode.GCS)}"})
    environment = os.environ | raynode.environment(settings, gateway.stack.paths) | settings_environment(settings) | kafka_role("ray")
    url = f"http://{settings.host}:{settings.standalone_gateway_port}"
    body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": PIXELS}]}

    def call() -> httpx.Response:
        return gateway.client.post(f"{url}/v2/models/{M}/infer", json=body, headers={"Authorization": f"Bearer {SECRET}"}, timeout=20)

    with (gateway.settings.folder / "standalone.log").open("ab") as log:
        standalone = subprocess.Popen(
            [sys.executable, "-m", "serving.hosting.gateway_standalone"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            eventually(lambda: gateway.client.get(f"{url}/v2/health/ready").status_code == 200, "it is ready", 180)
            yield standalone, call
        finally:
            standalone.kill()
            standalone.wait(10)


def test_a_standalone_gateway_answers_with_a_receipt_and_closes_its_epoch(gateway: GatewayStack) -> None:
    with standalone_gateway(gateway) as (standalone, call):
        answers = [call() for _ in range(10)]
        assert [a.status_code for a in answers] == [200] * 10
        epoch = answers[0].headers["modelmarket-epoch"]
        assert epoch not in closed(gateway)
        standalone.send_signal(signal.SIGTERM)
        assert standalone.wait(30) == 0
    assert closed(gateway)[epoch] == written(gateway)[epoch] == {"caller": 10}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("points", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_in_the_middle_of_its_calls_a_gateway_leaves_no_answer_without_its_fact(gateway: GatewayStack, points: int) -> None:
    chance, answers, before = random.Random(12), list[httpx.Response](), set(opened(gateway))

    def until_it_dies(call: Callable[[], httpx.Response], heard: list[httpx.Response]) -> None:
        while True:
            try:
                heard.append(call())
            except httpx.TransportError:  # what came only in part is no answer
                return

    for _ in range(points):
        with standalone_gateway(gateway) as (standalone, call), ThreadPoolExecutor(8) as callers:
            heard = list[httpx.Response]()
            calling = [callers.submit(until_it_dies, call, heard) for _ in range(8)]
            enough = chance.randint(8, 100)
            try:
                eventually(lambda heard=heard, enough=enough: len(heard) >= enough, "calls are answered")
            finally:  # its callers go on until it is dead
                standalone.kill()
                KILLED.update(set(opened(gateway)) - before)
            for one in calling:
                one.result(60)
            answers += [answer for answer in heard if answer.status_code == 200]
    epochs = {answer.headers["modelmarket-epoch"] for answer in answers}
    assert len(answers) >= 8 * points and len(epochs) == points
    check_answers(gateway, answers)
    assert not epochs & closed(gateway).keys()


@contextmanager
def controller_away(gateway: GatewayStack) -> Generator[None]:
    def stopped() -> bool:
        """The supervisor ignores a start while a part stops."""
        return gateway.stack.part_status("controller").state == "stopped"

    gateway.stack.supervisor.stop("controller")
    try:
        eventually(stopped, "the stack's own controller is stopped", 180)
        yield
    finally:
        eventually(stopped, "it can be started", 60)
        gateway.stack.supervisor.start("controller")
        gateway.stack.wait_healthy("controller")


@contextmanager
def throttled(gateway: GatewayStack, client_id: str, bytes_per_s: int) -> Generator[None]:
    """A quota of Kafka's own on what a client may read."""

    def configure(*what: str) -> None:
        tool = [java(), "-Xmx128m", "-cp", kafka_classpath(), "kafka.admin.ConfigCommand", "--bootstrap-server", gateway.settings.kafka]
        tool += ["--command-config", str(tools_properties(gateway.stack.paths, SET_UP))]
        entity = ["--alter", *what, "--entity-type", "clients", "--entity-name", client_id]
        subprocess.run([*tool, *entity], check=True, capture_output=True, timeout=60)

    configure("--add-config", f"consumer_byte_rate={bytes_per_s}")
    try:
        yield
    finally:
        configure("--delete-config", "consumer_byte_rate")


def test_a_controller_on_a_throttled_log_writes_nothing_until_it_has_read_all_that_was_there(
    gateway: GatewayStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = "model-vision-core-new"
    with controller_away(gateway):
        reads_all_that_was_there(gateway, new, tmp_path, monkeypatch)
    eventually(lambda: gateway.infer(new).status_code == 200, "the stack's own controller goes on with it", 180)


def reads_all_that_was_there(gateway: GatewayStack, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = apps(gateway)
    gateway.facts.model(new, "acme")
    gateway.facts.deploy(
        new, "acme", "1.0.0", gateway.facts.version(new, "acme", "1.0.0", write_digits(tmp_path / "new.onnx", 4.0), TECHNICAL)
    )
    writer, frame = Writer(gateway.settings, "test"), gateway.facts.codec.encode(example_of(FACTS["RouteApplied"]))
    for n in range(12_000):  # three megabytes behind the facts that matter
        writer.append("deployments", b"m", frame, {"ce_type": b"RouteApplied", "ce_id": bytes(100)}, n % 4)
    assert writer.flush(30)
    reader = Reader(gateway.settings, "test")
    ends = reader.end_offsets("models", "deployments")
    reader.close()

    controller = Controller(settings_of_another_log(gateway, gateway.settings, tmp_path))
    applied: list[bool] = []
    send = ServeRest.apply

    def watched(rest: ServeRest, config: dict[str, Any]) -> None:
        partitions = controller._fold_runner._partitions  # pyright: ignore
        applied.append(all(partitions[tp].next_offset >= end for tp, end in ends.items()))
        send(rest, config)

    monkeypatch.setattr(ServeRest, "apply", watched)
    thread = threading.Thread(target=controller.run)
    try:
        with throttled(gateway, "fold-controller", 100_000):
            thread.start()
            eventually(lambda: controller.health()["detail"] == "folding the log", "it folds", 180)
            slow_until = time.monotonic() + 4
            while time.monotonic() < slow_until:
                assert (controller.health()["detail"], controller.health()["position"], applied) == ("folding the log", 0, [])
                assert apps(gateway) == before and gateway.infer().status_code == 200
                time.sleep(0.2)
        eventually(lambda: f"{new}-v1.0.0" in apps(gateway), "then it applies what is new", 180)
        assert apps(gateway) == before | {f"{new}-v1.0.0"} and all(applied)
    finally:
        controller.stop()
        if thread.ident:
            thread.join(60)
        writer.close()
    assert not thread.is_alive()


def test_a_restart_of_the_gateway_refuses_no_call_and_closes_its_epoch(gateway: GatewayStack) -> None:
    before, old = set(gateway.pids("ray::ServeReplica:gateway:")), gateway.infer().headers["modelmarket-epoch"]
    with gateway.calling(callers=4) as answers:
        eventually(lambda: len(answers) > 20, "calls are answered")
        gateway.stack.restart("gateway")
        enough = len(answers) + 20
        eventually(lambda: len(answers) > enough, "calls are answered by the new one")
    assert {answer.status_code for answer in answers} == {200}, "not one was refused or cut"
    assert answers[-1].headers["modelmarket-epoch"] == newest_epoch(gateway) != old
    check_answers(gateway, answers)
    assert not before & set(gateway.pids("ray::ServeReplica:gateway:"))
    eventually(lambda: closed(gateway).get(old) == written(gateway)[old], "the old epoch is closed")
    (model,) = eventually(
        lambda: [model for model in gateway.stack.status().models if (model.model, model.version) == (M, "1.0.0")],
        "Serve tells of the model",
    )
    assert (model.running, model.wanted, model.state) == (1, 1, "running")


def test_what_is_gone_of_a_gateway_is_named(gateway: GatewayStack) -> None:
    gateway.stack.wait_healthy("gateway")
    proxy = gateway.pids(f"-f {raynode.haproxy_folder(gateway.stack.paths)}/")[0]
    manager = parent_of(proxy)
    assert manager
    os.kill(manager, signal.SIGSTOP)  # it starts the proxy again, on a busy machine before anybody asks
    try:
        os.kill(proxy, signal.SIGKILL)
        eventually(lambda: not command_of(proxy), "the proxy is gone")
        now = gateway.stack.part_status("gateway")
    finally:
        os.kill(manager, signal.SIGCONT)
    assert (now.state, now.detail) == ("unhealthy", "the proxy before it is gone; replicas that run: 1")
    gateway.stack.wait_healthy("gateway")
    with controller_away(gateway), pytest.raises(LaunchFailed, match="the controller, which restarts it, is stopped"):
        gateway.stack.restart("gateway")


def test_ray_is_started_again_with_its_gateways_epochs_closed_and_its_models_loaded(gateway: GatewayStack) -> None:
    last = gateway.infer_many(20)[0].headers["modelmarket-epoch"]
    gateway.stack.restart("ray")
    assert closed(gateway)[last] == written(gateway)[last]
    eventually(
        lambda: {part.name for part in gateway.stack.status().parts if part.healthy} >= {"ray", "controller", "gateway"}, "all are healthy"
    )
    eventually(lambda: gateway.infer().status_code == 200, "the model is loaded again", 180)


def test_when_the_stack_stops_every_epoch_is_closed_and_a_bill_shows_it(gateway: GatewayStack, before: set[str]) -> None:
    """The last test here: afterwards only the log is there."""
    last = gateway.infer_many(20)[0].headers["modelmarket-epoch"]
    gateway.facts.close()
    gateway.stack.down()
    gateway.stack.up({"kafka", "registry"})
    assert closed(gateway)[last] == written(gateway)[last]
    reader = Reader(gateway.settings, "test")
    try:
        (end,) = reader.end_offsets("producers").values()
        ended = epochs_ended(reader, gateway.facts.codec, end)
    finally:
        reader.close()
    assert set(written(gateway)) - KILLED - before <= ended - before, (
        "a bill over all of it has no open producer but those that were killed"
    )
