"""Processes of the command side that a test can kill, on a prepared log, and the command API as a caller uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from events.process.settings import Settings

ADMIN = "mm_" + "a" * 43
ROOT = Path(__file__).resolve().parents[2]


def environment(settings: Settings, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MODELMARKET_")}
    mine = {"STACK": settings.stack, "BASE_PORT": str(settings.base_port), "DATA": str(settings.folder), "ADMIN_KEY": ADMIN}
    return kept | {f"MODELMARKET_{k}": v for k, v in (mine | more).items()}


@dataclass
class Process:
    """One of our processes; `kill` is kill -9."""

    module: str
    settings: Settings
    more: dict[str, str] = field(default_factory=dict[str, str])
    running: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.settings.folder / f"{self.module}.log"

    def start(self) -> Process:
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        role = "relay" if self.module == "commands.relay.relay" else "commands"
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", self.module],
                cwd=ROOT,
                env=environment(self.settings, **({"KAFKA_SASL_USERNAME": role} | self.more)),
                stdout=log,
                stderr=log,
            )
        return self

    def kill(self, how: int = signal.SIGKILL) -> None:
        assert self.running is not None
        self.running.send_signal(how)
        self.running.wait(30)

    def ended(self, timeout_s: float = 60) -> int:
        assert self.running is not None
        return self.running.wait(timeout_s)

    def stop(self) -> None:
        if self.running is not None and self.running.poll() is None:
            self.kill(signal.SIGTERM)


class CommandClient:
    """The command API as a caller sees it: no answer is ever a 5xx unless the test expects one."""

    def __init__(self, settings: Settings) -> None:
        self._client = httpx.Client(base_url=settings.commands, timeout=60)

    def __call__(self, method: str, path: str, key: str = ADMIN, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        return self._client.request(method, path, headers=headers, **more)

    def ok(self, method: str, path: str, key: str = ADMIN, **more: Any) -> dict[str, Any]:
        answer = self(method, path, key, **more)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def key(self, tenant: str, *scopes: str, user: str, **more: Any) -> str:
        return str(self.ok("POST", f"/v1/tenants/{tenant}/keys", json={"scopes": list(scopes), "user": user, **more})["api_key"])
