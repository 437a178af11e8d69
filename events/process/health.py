"""Tells whoever asks whether a process is well: GET /healthz, 200 or 503, for processes that serve no HTTP of their own."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

State = Callable[[], Mapping[str, Any]]
"""{"status": "ready" | "starting" | "failed", "lag": int | None, …}"""


def serve_health(host: str, port: int, state: State) -> ThreadingHTTPServer:
    """Answers from a daemon thread until the process ends or `.shutdown()`."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # a client that says nothing does not keep a thread

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
            """Health checks are no news."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, part, logger, message, and whatever `extra=` adds (correlation_id …)."""

    _KNOWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "part": self._part,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in record.__dict__.items() if k not in self._KNOWN and not k.startswith("_")}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def start_logging(part: str, level: int = logging.INFO) -> None:
    """JSON lines to standard error, for this whole process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(part))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "httpx2", "httpcore", "aiokafka", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
