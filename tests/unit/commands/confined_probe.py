"""Runs in the process that reads uploads and prints what that process can still do."""

from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path

from commands.artifacts.sandbox import confine


def reached() -> str:
    try:
        socket.create_connection(("127.0.0.1", 1), 1)
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "no network"
    return "connected"


def wrote() -> bool:
    file = Path(f"/tmp/confined-{os.getpid()}")
    try:
        file.write_text("x")
    except OSError:
        return False
    finally:
        file.unlink(missing_ok=True)
    return True


if __name__ == "__main__":
    network = confine()
    bounds = [resource.getrlimit(r)[0] for r in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]
    print(json.dumps({"network": network, "reached": reached(), "wrote": wrote(), "bounds": bounds, "environment": sorted(os.environ)}))  # noqa: T201
