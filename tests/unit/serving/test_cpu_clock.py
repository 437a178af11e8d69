"""Each run of a model is billed its own processor time, whatever else runs in its process."""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper

from serving.inference import RunInput
from serving.model_interface import Interface, Tensor
from serving.runtimes.cpu_clock import CpuClock
from serving.runtimes.onnx import OnnxRuntime
from tests.support.polling import eventually

SIDE = 256
RUNS = 4


def products(threads: int) -> OnnxRuntime:
    """A model of thirty matrix products."""
    names = ["x", *(f"h{n}" for n in range(29)), "y"]
    nodes = [helper.make_node("MatMul", [before, "w"], [after]) for before, after in itertools.pairwise(names)]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [SIDE, SIDE], (np.eye(SIDE, dtype="<f4") * 0.5).tobytes(), raw=True)
    columns = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [SIDE, SIDE]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", columns[:1], columns[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    face = Interface((Tensor("x", "FP32", (SIDE, SIDE)),), (Tensor("y", "FP32", (SIDE, SIDE)),))
    runtime = OnnxRuntime(model.SerializeToString(), face, threads)
    runtime.warm_up()
    return runtime


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_at_once_are_billed_together_what_they_used(threads: int) -> None:
    """The bound comes from the process's own clock; the time of a thread that works for nobody is taken off."""
    runtime, stop, foreign_ns = products(threads), threading.Event(), list[int]()
    run = RunInput((1,), ((SIDE, SIDE),), (np.ones((SIDE, SIDE), "<f4").tobytes(),), (((0, True),),))

    def work_for_nobody() -> None:
        began = time.thread_time_ns()
        while not stop.is_set():
            sum(range(1000))
        foreign_ns.append(time.thread_time_ns() - began)

    def billed_and_callers_us(_: int) -> tuple[int, float]:
        """What the run is billed, and the time of the thread that asked for it."""
        began = time.thread_time_ns()
        (done,) = runtime.predict([run])
        return done.cpu_us, (time.thread_time_ns() - began) / 1000

    other = threading.Thread(target=work_for_nobody)
    began = time.process_time_ns()
    other.start()
    with ThreadPoolExecutor(3) as pool:
        billed, callers = map(sum, zip(*pool.map(billed_and_callers_us, range(3 * RUNS)), strict=True))
    stop.set()
    other.join()
    used = (time.process_time_ns() - began - foreign_ns[0]) / 1000
    assert billed <= 1.02 * used
    assert billed > 1.03 * callers if threads > 1 else 0.8 * callers < billed <= callers, "the session's own threads work, too"
    runtime.close()


def test_a_thread_that_was_taken_for_the_sessions_and_has_ended_counts_nothing() -> None:
    """It began while the session was made, and ended before a run, or during one."""
    stop, ids = threading.Event(), list[int]()

    def foreign(until: threading.Event) -> None:
        ids.append(threading.get_native_id())
        until.wait(30)

    over = threading.Event()
    over.set()
    ended, ending = threading.Thread(target=foreign, args=(over,)), threading.Thread(target=foreign, args=(stop,))
    ended.start()
    ended.join()
    ending.start()
    eventually(lambda: len(ids) == 2, "both threads have begun")
    began = time.thread_time_ns()
    with CpuClock(ids).run() as used:
        sum(range(2_000_000))
        stop.set()
        ending.join()
        eventually(lambda: f"{ids[1]}" not in os.listdir("/proc/self/task"), "its clock is gone")
        worked_us = (time.thread_time_ns() - began) // 1000
        assert 0.5 * worked_us < used.us <= (time.thread_time_ns() - began) // 1000
