"""Start and stop of the gateway: failed applications start again, epochs are closed, disconnected callers pay nothing (K12, K13, K18)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Generator
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
from infra.launcher.jvm import java, kafka_classpath, tools_properties
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
    closed,
    facts,
    opened,
    serve_rest,
    settings_of_another_log,
    written,
)
from tests.support.polling import eventually

ROOT = Path(__file__).resolve().parents[3]


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


def test_a_caller_who_leaves_before_the_answer_is_one_execution_that_nobody_is_billed_for(gateway: GatewayStack) -> None:
    def aborted() -> list[dict[str, Any]]:
        return [body for _, body, _ in gateway.usage() if body.get("outcome") == "aborted"]

    before = len(aborted())
    (replica,) = eventually(lambda: gateway.pids("ServeReplica:model-vision-core-digits-v1.0.0"), "the test before left a replica")
    for arrived_s, left_s in ((0.5, 1.5), (3, 6)):  # neither the call's arrival nor that of its end can be seen from outside
        os.kill(replica, signal.SIGSTOP)  # so that the answer takes as long as this test likes
        try:
            disconnect(gateway, gateway.settings.gateway_port, arrived_s)
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

    def watched(rest: ServeRest, config: dict[str, Any], **until: float) -> None:
        partitions = controller._fold_runner._partitions  # pyright: ignore
        applied.append(all(partitions[tp].next_offset >= end for tp, end in ends.items()))
        send(rest, config, **until)

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


def test_ray_is_started_again_with_its_gateways_epochs_closed_and_its_models_loaded(gateway: GatewayStack) -> None:
    last = gateway.infer_many(20)[0].headers["modelmarket-epoch"]
    gateway.stack.restart("ray")
    eventually(lambda: closed(gateway).get(last) == written(gateway)[last], "the gateway that left with Ray's node closes its epoch")
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
    assert set(written(gateway)) - before <= ended - before, "a bill over all of it has no open producer but those that were killed"
