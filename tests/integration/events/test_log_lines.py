"""A part that finds no Kafka says so in JSON lines, as everything else; waiting for a broker is no error, giving up is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from infra.launcher.ports import free_block
from tests.support.reaper import ROOT

PARTS = ("commands.api", "projections.bills.biller", "projections.query_api.app", "serving.control.controller", "projections.worker")


def test_every_line_of_a_part_that_finds_no_kafka_is_json_and_only_the_last_is_worse_than_a_warning(tmp_path: Path) -> None:
    with free_block() as base_port, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        started = list[subprocess.Popen[str]]()
        for part in PARTS:
            environment = os.environ | {
                "MODELMARKET_KAFKA_BOOTSTRAP": f"127.0.0.1:{closed.getsockname()[1]}",
                "MODELMARKET_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
                "MODELMARKET_BASE_PORT": str(base_port),
                "MODELMARKET_DATA": str(tmp_path / part),
            }
            started.append(subprocess.Popen([sys.executable, "-m", part], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        try:
            outputs = [process.communicate(timeout=300)[1] for process in started]
        finally:
            for process in started:
                process.kill()
    for part, process, text in zip(PARTS, started, outputs, strict=True):
        *before, last = [json.loads(line) for line in text.splitlines()]
        assert process.returncode == 1, part
        assert [line for line in before if line["level"] not in ("info", "warning")] == [], part
        assert last["level"] in ("error", "critical") and "Kafka" in last["message"], part
