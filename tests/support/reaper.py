"""Ends what a test run has started, when the run ends without its fixtures: pytest-timeout ends the whole process, and so does kill -9.

A process beside the run holds one end of a pipe, and the run the other. The kernel closes the run's end however the run ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

from infra.launcher import processes

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
    return 1 if processes.end_carriers(mark, gently_s=0) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
