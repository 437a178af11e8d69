"""Whatever a process says is one JSON object a line, also its last words, and a broker that is away is no error of its own."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiokafka.client
import aiokafka.consumer.group_coordinator
import pytest

from events.log.client import client_log
from projections.ingest.chunks import AWAY
from tests.support.todays_codec import settings_with_keys

ROOT = Path(__file__).resolve().parents[3]
PARTS = {
    "biller": "projections.bills.biller",
    "queries": "projections.query_api.app",
    "worker": "projections.worker",
    "controller": "serving.control.controller",
    "commands": "commands.api",
}


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(folder: Path) -> dict[str, str]:
    """Kafka and the registry are at ports where nobody listens; the part's own ports are free."""
    keys = settings_with_keys().model_dump(include={"setup_public_keys", "relay_public_keys", "market_public_keys"})
    given = {
        **keys,
        "data": str(folder),
        "kafka_bootstrap": f"127.0.0.1:{closed_port()}",
        "kafka_security_protocol": "PLAINTEXT",
        "registry_url": f"http://127.0.0.1:{closed_port()}",
    }
    return {**os.environ, **{f"MODELMARKET_{name.upper()}": value for name, value in given.items()}}


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.timeout(600)
def test_what_a_part_says_without_kafka_is_json_a_line_and_only_its_last_word_is_an_error(tmp_path: Path) -> None:
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=environment(tmp_path / name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, module in PARTS.items()
    }
    for name, part in running.items():
        printed = lines_of(part.communicate(timeout=500)[0])
        assert part.returncode == 1, name
        levels = [line["level"] for line in printed]
        assert levels[-1] == "error" and "Kafka" in printed[-1]["message"], (name, printed[-1])
        assert not {"error", "critical"} & set(levels[:-1]), (name, [line for line in printed if line["level"] == "error"])
        assert all(line["part"].startswith(name) for line in printed)


DIES = r"""
import threading
from events.process.json_logging import start_logging
start_logging("part")
thread = threading.Thread(target=lambda: 1 / 0, name="watch")
thread.start()
thread.join()
raise ValueError("two\nlines")
"""


def test_what_nobody_caught_is_one_line_of_json_in_a_thread_too() -> None:
    done = subprocess.run([sys.executable, "-c", DIES], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    thread, process = lines_of(done.stderr)
    assert (thread["level"], thread["message"]) == ("error", "thread watch ends: ZeroDivisionError: division by zero")
    assert process["message"] == "this process ends: ValueError: two\nlines" and "Traceback" in process["exception"]
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("printed", "level"),
    [
        ("FAIL [rdkafka#producer-1] [thrd:b]: b: Connect to ipv4#127.0.0.1:1 failed: Connection refused", "WARNING"),
        ("ERROR [rdkafka#consumer-2] [thrd:b]: 1/1 brokers are down", "WARNING"),
        ("FATAL [rdkafka#producer-1] [thrd:main]: Fatal error: OUT_OF_ORDER_SEQUENCE_NUMBER", "ERROR"),
    ],
)
def test_a_broker_that_is_away_is_a_warning_of_librdkafka_and_what_ends_a_producer_an_error(printed: str, level: str) -> None:
    record = logging.makeLogRecord({"name": client_log.name, "levelno": logging.ERROR, "levelname": "ERROR", "msg": printed})
    for known in client_log.filters:
        getattr(known, "_last_logged_s", {}).clear()
    assert client_log.filter(record)
    assert (record.levelname, record.levelno) == (level, getattr(logging, level))


def test_connection_errors_of_aiokafka_are_warnings_by_the_words_of_its_source() -> None:
    modules = (aiokafka.client, aiokafka.consumer.group_coordinator)
    errors = {m.log: re.findall(r"log\.error\(\s*[\"'](.*?)[\"']\s*[,)+\n]", inspect.getsource(m)) for m in modules}
    for words in AWAY:
        assert any(message.startswith(words) for printed in errors.values() for message in printed), (
            f"{words} is printed by aiokafka no more"
        )
    for log, printed in errors.items():
        for message in printed:
            record = logging.makeLogRecord({"name": log.name, "levelno": logging.ERROR, "levelname": "ERROR", "msg": message})
            assert log.filter(record)
            assert (record.levelname == "WARNING") == message.startswith(AWAY), message
    assert {m for printed in errors.values() for m in printed if not m.startswith(AWAY)} >= {"Unexpected error from SyncGroup: %s"}
