"""The local ClickHouse as its own process, for tests that kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from events.process.passwords import clickhouse_password_file
from events.process.settings import Settings
from infra.launcher.ports import free_block

START_S_MAX = 180


class ClickHouseProcess:
    def __init__(self, folder: Path, **settings: str) -> None:
        self._ports = ExitStack()  # they are free for others when this object is gone
        self.environment = {
            "MODELMARKET_DATA": str(folder),
            "MODELMARKET_BASE_PORT": str(self._ports.enter_context(free_block())),
            **{f"MODELMARKET_{k.upper()}": v for k, v in settings.items()},
        }
        self.settings = Settings.model_validate({k.removeprefix("MODELMARKET_").lower(): v for k, v in self.environment.items()})
        self.port = self.settings.clickhouse_port
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, settings: Settings) -> ClickHouseProcess:
        """The engine of a stack whose settings are given."""
        process = cls.__new__(cls)
        process.environment = {"MODELMARKET_DATA": str(settings.folder), "MODELMARKET_BASE_PORT": str(settings.base_port)}
        process.settings, process.port, process.process = settings, settings.clickhouse_port, None
        return process

    def password(self, user: str = "operator") -> str:
        """Of one of the market's own roles, made at the first start."""
        return clickhouse_password_file(self.settings.folder, user).read_text().strip()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.clickhouse_local.engine"], env={**os.environ, **self.environment}, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + START_S_MAX
        while time.monotonic() < end:
            assert self.process.poll() is None, "the engine ended at start"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=2) as r:
                    if r.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("the engine did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def end(self) -> None:
        """However it is."""
        if self.runs:
            self.kill()

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(120)
