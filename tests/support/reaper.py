"""Ends what a test run has started, when the run ends without its fixtures: pytest-timeout ends the whole process, and so does kill -9.

It also removes the short folders of stacks; their data is in folders of the tests.

A process beside the run holds one end of a pipe, and the run the other. The kernel closes the run's end however the run ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from infra.launcher import processes
from infra.launcher.paths import MARK_VARIABLE, short_folder

RUN_VARIABLE = "TEST_RUN_MARK"
"""Every process that the run starts inherits it, whatever else its environment is."""
ROOT = Path(__file__).resolve().parents[2]


def start_reaper() -> None:
    """From now on nothing that this process starts outlives it."""
    mark = f"{os.getpid()}-{uuid.uuid4()}"
    environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    watched, _ = os.pipe()  # the other end stays open until this process ends; no child inherits it
    subprocess.Popen(
        [sys.executable, "-m", "tests.support.reaper", f"{RUN_VARIABLE}={mark}"],
        cwd=ROOT,
        env=environment,
        stdin=watched,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(watched)
    os.environ[RUN_VARIABLE] = mark


def main(mark: str) -> int:
    sys.stdin.buffer.read()
    stacks = {stack for pid in processes.carriers(mark) if (stack := stack_mark_of(pid))}
    left = processes.end_carriers(mark, gently_s=0)
    for stack in stacks:
        shutil.rmtree(short_folder(stack), ignore_errors=True)
    return 1 if left else 0


def stack_mark_of(pid: int) -> str:
    """The mark of the stack that a process belongs to; empty when it belongs to none."""
    prefix = f"{MARK_VARIABLE}=".encode()
    return next((pair.removeprefix(prefix).decode() for pair in processes.environment_of(pid).split(b"\0") if pair.startswith(prefix)), "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
