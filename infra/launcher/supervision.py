"""The supervisor that keeps the parts alive: its configuration, its start, and its XML-RPC interface on a unix socket."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from events.process.settings import Settings
from infra.launcher.failure import LaunchFailed
from infra.launcher.parts import Part
from infra.launcher.paths import MARK_VARIABLE, ROOT, StackPaths

ANSWER_S_MAX = 10.0
START_S_MAX = 15.0
LOG_BYTES_MAX = 16 << 20
LOG_BACKUPS = 2
"""A part keeps at most 48 MiB of log."""
RECENT_S_MAX = 0.15
"""A start asks about each part several times a second; one answer of the supervisor serves all parts for this long."""
RESTARTS_MAX = 200
"""Pauses grow by a second each time: a part that never starts is tried for hours, and rarely in the end."""


@dataclass(frozen=True)
class Supervised:
    """A part as the supervisor sees it."""

    name: str
    state: str
    pid: int
    started: int
    now: int
    exit_status: int

    @property
    def uptime_s(self) -> int:
        return self.now - self.started if self.pid else 0


# --- configuration


def configuration(parts: Iterable[Part], paths: StackPaths) -> str:
    head = f"""\
[supervisord]
nodaemon=true
logfile={paths.log("supervisor")}
logfile_maxbytes=4MB
logfile_backups=1
pidfile={paths.run / "supervisord.pid"}
childlogdir={paths.logs}
directory={ROOT}
minfds=4096
user=root

[unix_http_server]
file={paths.supervisor_socket}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
    if os.getuid() != 0:
        head = head.replace("user=root\n", "")
    return "\n".join([head, *(section(part, paths) for part in parts)])


def section(part: Part, paths: StackPaths) -> str:
    environment = ",".join(f'{name}="{escaped(value)}"' for name, value in part.environment.items())
    return f"""\
[program:{part.name}]
command={" ".join(quoted(word) for word in part.command)}
environment={environment}
autostart=false
autorestart={"false" if part.runs_once else "true"}
startsecs={0 if part.runs_once else part.crashed_within_s}
startretries={0 if part.runs_once else RESTARTS_MAX}
stopwaitsecs={part.stop_s_max}
stopasgroup={"false" if part.stops_its_own else "true"}
killasgroup=true
redirect_stderr=true
stdout_logfile={paths.log(part.name)}
stdout_logfile_maxbytes={LOG_BYTES_MAX}
stdout_logfile_backups={LOG_BACKUPS}
"""


def escaped(value: str) -> str:
    return value.replace("%", "%%").replace('"', '\\"')


def quoted(word: str) -> str:
    """The supervisor splits commands like a shell and expands `%(name)s`."""
    safe = word.replace("%", "%%")
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


NOT_INHERITED = ("MODELMARKET_", "RAY_", "SUPERVISOR_", "PYTHONDONTWRITEBYTECODE")
"""The last: forty processes would each compile all their modules at each start, which takes about two fifths of the time of `up`."""


def stack_environment(settings: Settings, paths: StackPaths, secrets: Mapping[str, str]) -> dict[str, str]:
    """What every process of the stack inherits: its settings and mark, and from the caller's environment no setting of this project."""
    # Not a setting that is read, but what children get from their parent (PATH, HOME, locale).
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    direct = ",".join(filter(None, [inherited.get("NO_PROXY", inherited.get("no_proxy", "")), settings.host, "localhost"]))
    return {
        **inherited,
        **settings_environment(settings),
        **secrets,
        "MODELMARKET_DATA": str(paths.folder),
        MARK_VARIABLE: paths.mark,
        "NO_PROXY": direct,
        "no_proxy": direct,
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",
    }


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings that differ from their default, as the environment variables that say so."""
    chosen = settings.model_dump(exclude_defaults=True)
    return {f"MODELMARKET_{name.upper()}": plain(value) for name, value in chosen.items()}


def plain(value: object) -> str:
    reveal = getattr(value, "get_secret_value", None)
    return str(reveal() if callable(reveal) else value)


# --- the running supervisor


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S_MAX)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_S_MAX)
        self.sock.connect(self.path)


class UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        return UnixConnection(self.path)


class Supervisor:
    def __init__(self, paths: StackPaths) -> None:
        self.paths = paths
        self._recent_lock = threading.Lock()
        self._recent: dict[str, Supervised] = {}
        self._recent_until = 0.0

    def call(self, method: str, *arguments: object) -> object:
        proxy = xmlrpc.client.ServerProxy("http://localhost", transport=UnixTransport(str(self.paths.supervisor_socket)))
        with proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def pid(self) -> int | None:
        """None when it does not run: no socket, or no process listens on it."""
        try:
            return cast("int", self.call("getPID"))
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return None

    def launch(self, parts: Iterable[Part], environment: Mapping[str, str]) -> None:
        """Start the supervisor itself, with every part known and none started. It outlives this process and its terminal."""
        self.paths.supervisor_config.write_text(configuration(parts, self.paths))
        self.paths.supervisor_socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self.paths.supervisor_config)]
        errors = self.paths.log("supervisor-errors")
        with errors.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
            )
        deadline = time.monotonic() + START_S_MAX
        while self.pid() != process.pid:
            if process.poll() is not None or time.monotonic() > deadline:
                raise LaunchFailed(
                    "supervisor-failed",
                    f"the supervisor did not start within {START_S_MAX:.0f} s",
                    remedy=f"read its logs: {errors} and {self.paths.log('supervisor')}",
                    log_tail=errors.read_text(errors="replace")[-2000:],
                )
            time.sleep(0.05)

    def start(self, name: str) -> None:
        """Ask for a start, without waiting for it. A part that runs already, or is about to, is left as it is."""
        try:
            self.call("startProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise
        finally:
            self._forget_recent()

    def stop(self, name: str) -> None:
        try:
            self.call("stopProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if "NOT_RUNNING" not in fault.faultString:
                raise
        finally:
            self._forget_recent()

    def signal(self, name: str, what: str) -> None:
        """Send a running part a signal, named without SIG."""
        self.call("signalProcess", name, what)

    def shutdown(self) -> None:
        self.call("shutdown")

    def one(self, name: str) -> Supervised:
        """A part as it is now."""
        return supervised(cast("dict[str, object]", self.call("getProcessInfo", name)))

    def recent(self, name: str) -> Supervised:
        """A part as it was at most RECENT_S_MAX ago, and not older than the last start or stop from here."""
        with self._recent_lock:
            if time.monotonic() > self._recent_until:
                self._recent = self.known()
                self._recent_until = time.monotonic() + RECENT_S_MAX
            return self._recent[name]

    def _forget_recent(self) -> None:
        with self._recent_lock:
            self._recent_until = 0.0

    def known(self) -> dict[str, Supervised]:
        """All parts as they are now."""
        rows = cast("list[dict[str, object]]", self.call("getAllProcessInfo"))
        return {row.name: row for row in map(supervised, rows)}


def supervised(row: Mapping[str, object]) -> Supervised:
    number = {name: cast("int", row[name]) for name in ("pid", "start", "now", "exitstatus")}
    return Supervised(str(row["name"]), str(row["statename"]), number["pid"], number["start"], number["now"], number["exitstatus"])


def fingerprint(parts: Iterable[Part], environment: Mapping[str, str], paths: StackPaths) -> str:
    """Changes when a running stack was started with other settings, other parts or other code paths than now."""
    ours = sorted((name, value) for name, value in environment.items() if name.startswith("MODELMARKET_"))
    return hashlib.sha256(repr((ours, configuration(parts, paths))).encode()).hexdigest()
