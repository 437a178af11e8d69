"""Every line that a process writes to its log is one JSON object, its last words included; a broker that is away is no error."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

from events.process.json_logging import start_logging
from tests.support.reaper import ROOT


def lines_of(program: str) -> list[dict[str, Any]]:
    started = "from events.process.json_logging import start_logging\nstart_logging('part')\n"
    done = subprocess.run([sys.executable, "-c", started + program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_what_ends_a_process_or_a_thread_is_one_line_with_its_traceback() -> None:
    thread, warning, end = lines_of(
        "import threading, warnings\n"
        "def fails(): raise ValueError('of a thread')\n"
        "t = threading.Thread(target=fails, name='folding'); t.start(); t.join()\n"
        "warnings.warn('old')\n"
        "try: {}['k']\n"
        "except KeyError as e: raise RuntimeError('two\\nlines') from e\n"
    )
    assert (thread["level"], thread["message"]) == ("critical", "thread folding ends: ValueError: of a thread")
    assert warning["level"] == "warning" and "old" in warning["message"]
    assert (end["level"], end["part"], end["message"]) == ("critical", "part", "this process ends: RuntimeError: two\nlines")
    assert "KeyError" in end["exception"] and end["exception"].endswith("RuntimeError: two\nlines")


@pytest.mark.parametrize(
    ("client", "message", "level"),
    [
        ("librdkafka", "FAIL [a#producer-1] [thrd:b:9/1]: b:9/1: Connect to ipv4#b:9 failed: Connection refused (after 0ms in state CONNECT)", "warning"),
        ("librdkafka", "FAIL [a#consumer-1] [thrd:b:9/1]: b:9/1: Disconnected (after 2000ms in state UP)", "warning"),
        ("librdkafka", "ERROR [a#producer-1] [thrd:b:9/1]: 3/3 brokers are down", "warning"),
        ("librdkafka", "FAIL [a#producer-1] [thrd:b:9/1]: b:9/1: SASL authentication error: Authentication failed (after 2ms)", "error"),
        ("librdkafka", "FATAL [a#producer-1] [thrd:b:9/1]: Fatal error: Broker: Producer fenced", "error"),
        ("aiokafka.client", "Unable connect to node with id 1: [Errno 111] Connect call failed", "warning"),
        ("aiokafka.consumer.group_coordinator", "Heartbeat send request failed: NodeNotReadyError. Will retry.", "warning"),
        ("aiokafka.cluster", "Topic usage is not authorized for this client", "error"),
        ("projections.worker", "Failed fetch messages from 1: no", "error"),
    ],
)  # fmt: skip
def test_a_broker_that_is_away_is_a_warning_and_one_that_refuses_us_is_an_error(
    client: str, message: str, level: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    try:
        start_logging("part")
        logging.getLogger(f"{client}.one").error("%s", message)  # the parent lets one of a kind through in ten seconds
        (line,) = capsys.readouterr().err.splitlines()
    finally:
        logging.basicConfig(level=before[1], handlers=before[0], force=True)
        logging.captureWarnings(False)
    assert (json.loads(line)["level"], json.loads(line)["message"]) == (level, message)
