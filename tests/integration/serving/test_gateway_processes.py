"""Gateway processes die, are replaced and lose Ray: no answer without its fact, no call without an answer that says when to come back."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest

from events.process.problem import PROBLEM_JSON
from infra.launcher.probes import accepting_gateways
from tests.support.gateway_stack import GATEWAY, LISTENER, GatewayStack, M, check_answers, closed, newest_epoch, serve_rest, written
from tests.support.polling import eventually


def accepting(gateway: GatewayStack) -> set[int]:
    return accepting_gateways(gateway.settings)


@contextmanager
def watched(gateway: GatewayStack) -> Generator[list[httpx.Response | httpx.TransportError]]:
    """What a caller is told who calls every 50 ms, each time on a connection of its own."""
    seen, stop = list[httpx.Response | httpx.TransportError](), threading.Event()

    def call() -> None:
        while not stop.wait(0.05):
            try:
                seen.append(gateway.infer(timeout_s=90, Connection="close"))
            except httpx.TransportError as e:
                seen.append(e)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield seen
    finally:
        stop.set()
        caller.join()


def test_a_restart_refuses_no_call_and_closes_the_epoch(gateway: GatewayStack) -> None:
    before, old = accepting(gateway), gateway.infer().headers["modelmarket-epoch"]
    with watched(gateway) as seen, gateway.calling(callers=4) as answers:
        eventually(lambda: len(answers) > 20, "calls are answered")
        gateway.stack.restart("gateway")
        enough = len(answers) + 20
        eventually(lambda: len(answers) > enough, "calls are answered by the new one")
    good = [answer for answer in seen if isinstance(answer, httpx.Response)]
    assert len(good) == len(seen), "no connection was refused"
    assert {answer.status_code for answer in (*answers, *good)} == {200}, "not one was refused or cut"
    assert answers[-1].headers["modelmarket-epoch"] == newest_epoch(gateway) != old
    check_answers(gateway, [*answers, *good])
    assert not before & accepting(gateway)
    eventually(lambda: closed(gateway).get(old) == written(gateway)[old], "the old epoch is closed")
    eventually(lambda: not before & set(gateway.pids(GATEWAY)), "and its process is gone")
    (model,) = eventually(
        lambda: [model for model in gateway.stack.status().models if (model.model, model.version) == (M, "1.0.0")],
        "Serve tells of the model",
    )
    assert (model.running, model.wanted, model.state) == (1, 1, "running")


def test_a_call_under_way_outlives_the_restart_of_its_gateway(gateway: GatewayStack) -> None:
    old = eventually(lambda: gateway.infer().headers["modelmarket-epoch"], "a gateway answers")
    (replica,) = eventually(lambda: gateway.pids("ServeReplica:model-vision-core-digits-v1.0.0"), "its model runs")
    os.kill(replica, signal.SIGSTOP)  # so that the answer takes as long as this test likes
    try:
        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(gateway.infer, timeout_s=120)
            eventually(call.running, "the call is under way")
            time.sleep(1)
            gateway.stack.restart("gateway")
            time.sleep(5)  # Ray's own handler of the signal would have ended the process by now
            os.kill(replica, signal.SIGCONT)
            answer = call.result(120)
    finally:
        os.kill(replica, signal.SIGCONT)
    assert (answer.status_code, answer.headers["modelmarket-epoch"]) == (200, old)
    eventually(lambda: closed(gateway).get(old) == written(gateway)[old], "and then its epoch is closed")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("points", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_in_the_middle_of_its_calls_a_gateway_leaves_no_answer_without_its_fact(gateway: GatewayStack, points: int) -> None:
    chance, answers = random.Random(12), list[httpx.Response]()

    def until_it_dies(dead: threading.Event, heard: list[httpx.Response]) -> None:
        while not dead.is_set():
            with suppress(httpx.TransportError):  # what came only in part is no answer
                heard.append(gateway.infer())

    for _ in range(points):
        eventually(lambda: accepting(gateway) and gateway.infer().status_code == 200, "a gateway answers", 180)
        with ThreadPoolExecutor(8) as callers:
            heard, dead = list[httpx.Response](), threading.Event()
            calling = [callers.submit(until_it_dies, dead, heard) for _ in range(8)]
            enough = chance.randint(8, 100)
            try:
                eventually(lambda heard=heard, enough=enough: len(heard) >= enough, "calls are answered")
            finally:  # its callers go on until it is dead
                try:
                    gateway.stack.kill9("gateway")
                finally:
                    dead.set()
            for one in calling:
                one.result(60)
        answers += [answer for answer in heard if answer.status_code == 200]
    eventually(lambda: gateway.infer().status_code == 200, "a gateway answers again", 180)
    epochs = {answer.headers["modelmarket-epoch"] for answer in answers}
    assert len(answers) >= 8 * points and len(epochs) >= points
    check_answers(gateway, answers)
    assert len(epochs & closed(gateway).keys()) <= 1, "nobody closes what was killed"


def test_while_a_killed_gateway_is_replaced_every_caller_is_told_when_to_come_back(gateway: GatewayStack) -> None:
    eventually(lambda: gateway.infer().status_code == 200, "a gateway answers", 180)
    with watched(gateway) as seen:
        eventually(lambda: len(seen) > 5, "calls are answered")
        killed = gateway.stack.kill9("gateway")
        eventually(lambda: accepting(gateway) - {killed}, "another one accepts", 180)
        enough = len(seen) + 5
        eventually(lambda: len(seen) > enough, "and answers")
    away = [answer for answer in seen if isinstance(answer, httpx.Response) and answer.status_code != 200]
    assert away and {(a.status_code, a.headers["retry-after"], a.headers["content-type"]) for a in away} == {(503, "2", PROBLEM_JSON)}
    assert {a.json()["code"] for a in away} == {"gateway_away"} and all(a.json()["error"] == a.json()["detail"] for a in away)
    assert len([error for error in seen if isinstance(error, httpx.TransportError)]) <= 1, "the one call that the killed process had"
    last = seen[-1]
    assert isinstance(last, httpx.Response) and last.status_code == 200


def test_a_killed_listener_costs_no_call_and_the_next_one_takes_over(gateway: GatewayStack) -> None:
    before = eventually(lambda: accepting(gateway), "a gateway accepts", 180)
    with watched(gateway) as seen:
        gateway.kill(LISTENER)
        eventually(lambda: accepting(gateway) - before and not set(gateway.pids(GATEWAY)) & before, "its processes are replaced", 180)
        enough = len(seen) + 5
        eventually(lambda: len(seen) > enough, "calls are answered by the new ones")
    assert [answer for answer in seen if not isinstance(answer, httpx.Response) or answer.status_code != 200] == []


def test_while_ray_is_away_every_caller_is_told_at_once_when_to_come_back(gateway: GatewayStack) -> None:
    gateway.stack.wait_healthy("gateway")
    with watched(gateway) as seen:
        eventually(lambda: len(seen) > 5, "calls are answered")
        began = time.monotonic()
        gateway.kill("raylet/raylet")
        eventually(lambda: seen and isinstance(seen[-1], httpx.Response) and seen[-1].status_code == 503, "calls are refused", 180)
        refused_after = time.monotonic() - began
        eventually(lambda: seen and isinstance(seen[-1], httpx.Response) and seen[-1].status_code == 200, "calls are answered again", 180)
    away = [answer for answer in seen if isinstance(answer, httpx.Response) and answer.status_code != 200]
    assert {(a.status_code, a.headers["retry-after"], a.headers["content-type"]) for a in away} == {(503, "2", PROBLEM_JSON)}
    assert {a.json()["code"] for a in away} <= {"gateway_away", "replica_lost", "no_replica"}
    assert max(a.elapsed.total_seconds() for a in away) < 30 + refused_after, "nobody waits for the whole time-out of 60 s"
    assert [error for error in seen if isinstance(error, httpx.TransportError)] == []
    rest = serve_rest(gateway)
    try:
        assert rest.status().applied.version is not None
    finally:
        rest.close()
