"""The health of a process over HTTP: GET /healthz, 200 or 503, for processes that serve no HTTP of their own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

State = Callable[[], Mapping[str, Any]]
"""{"status": "ready" | "starting" | "failed", "lag": int | None, …}"""


def serve_health(host: str, port: int, state: State) -> ThreadingHTTPServer:
    """Answers from a daemon thread until the process ends or `.shutdown()`."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # a silent client does not keep a thread

        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/healthz", "/"):
                self.send_error(404)
                return
            now = dict(state())
            body = json.dumps(now).encode()
            self.send_response(200 if now.get("status") == "ready" else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Health checks are not logged."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
