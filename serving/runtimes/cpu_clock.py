"""Processor time of a model's run: that of the thread that runs it, and of the threads that its session owns.

The clock of the whole process also counts other runs, the event loop and Ray: two runs at once were each billed for both.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager


def threads_of_process() -> set[int]:
    return {int(tid) for tid in os.listdir("/proc/self/task")}


class CpuClock:
    """`owned`: ids of the threads that work for one run at a time. With such threads, runs wait for each other: nobody could tell whose work
    they do."""

    def __init__(self, owned: Iterable[int]) -> None:
        self._clocks = [_clock_of(tid) for tid in owned]
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def run(self) -> Generator[CpuTime]:
        if not self._clocks:
            yield CpuTime(self._clocks)
            return
        with self._one_at_a_time:
            yield CpuTime(self._clocks)


class CpuTime:
    """Counts from its creation. Only in the thread that made it. A thread that has ended counts nothing: it was no session's, since those live as
    long as their session, but one that began while the session was made."""

    def __init__(self, clocks: Iterable[int]) -> None:
        self._began = {clock: ns for clock in clocks if (ns := _read(clock)) is not None}
        self._own_began_ns = time.thread_time_ns()

    @property
    def us(self) -> int:
        owned = sum(ns - began for clock, began in self._began.items() if (ns := _read(clock)) is not None)
        return (time.thread_time_ns() - self._own_began_ns + owned) // 1000


def _read(clock: int) -> int | None:
    """None when its thread has ended."""
    try:
        return time.clock_gettime_ns(clock)
    except OSError:
        return None


def _clock_of(tid: int) -> int:
    """The id of a thread's CPU clock, as Linux makes it of the thread's id (MAKE_THREAD_CPUCLOCK: per thread, scheduler's time)."""
    return (~tid << 3) | 6
