"""A run that a time-out ends leaves no process and no short folder of a stack behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from infra.launcher.processes import alive
from tests.support.polling import eventually

ROOT = Path(__file__).resolve().parents[3]
HANGS = """
import os, subprocess, sys, time, uuid
from pathlib import Path

from infra.launcher.paths import MARK_VARIABLE, short_folder

def test_hangs():
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = [subprocess.Popen(sleep, start_new_session=True), subprocess.Popen(sleep)]
    mark = uuid.uuid4().hex[:16]
    short_folder(mark).mkdir()
    (short_folder(mark) / "supervisor.sock").touch()
    Path("short_folder").write_text(str(short_folder(mark)))
    started.append(subprocess.Popen(sleep, env={**os.environ, MARK_VARIABLE: mark}))
    Path("started").write_text(" ".join(str(process.pid) for process in started))
    time.sleep(600)
"""


def test_what_a_run_has_started_ends_with_it_when_a_time_out_ends_it(tmp_path: Path) -> None:
    (tmp_path / "test_hangs.py").write_text(HANGS)
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "tests.conftest", "--timeout=2", "--timeout-method=thread"]
    ran = subprocess.run(
        [*command, "-p", "no:cacheprovider", "test_hangs.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 1 and "Timeout" in ran.stdout + ran.stderr, ran.stdout + ran.stderr
    started = [int(pid) for pid in (tmp_path / "started").read_text().split()]
    assert len(started) == 3
    eventually(lambda: not any(map(alive, started)), "what the run has started ends", 30)
    short = Path((tmp_path / "short_folder").read_text())
    eventually(lambda: not short.exists(), "the stack's short folder is removed", 30)
