"""A Postgres of the test's own, where its programs are installed: in a temporary folder, on loopback, ended by process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from infra.launcher.ports import free_block

START_S_MAX = 180


@contextmanager
def running_postgres(bin_folder: Path) -> Generator[str]:
    """The URL of an empty database."""
    folder, user, ports = Path(tempfile.mkdtemp(prefix="mm-pg-")), _user(), ExitStack()
    try:
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        who: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user is not None else {}
        data = folder / "data"
        subprocess.run(
            [bin_folder / "initdb", "-D", data, "-U", "market", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
            check=True,
            capture_output=True,
            timeout=60,
            cwd=folder,
            **who,
        )
        port = ports.enter_context(free_block())
        settings = (
            "listen_addresses=127.0.0.1",
            f"port={port}",
            f"unix_socket_directories={folder}",
            "shared_buffers=16MB",
            "max_connections=60",
        )
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [bin_folder / "postgres", "-D", data, *(a for s in settings for a in ("-c", s))],
                stdout=log,
                stderr=log,
                cwd=folder,
                **who,
            )
        try:
            url = f"postgresql://market@127.0.0.1:{port}/postgres"
            _wait(url, server, folder / "log")
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)
    finally:
        ports.close()
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    """Postgres refuses to run as root: another user of this machine."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("neither user postgres nor nobody exists")


def _wait(url: str, server: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + START_S_MAX
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"postgres ended: {log.read_text()[-500:]}")
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise RuntimeError(f"postgres did not come up within {START_S_MAX} s: {log.read_text()[-500:]}")
